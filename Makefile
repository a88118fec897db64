# make demo, make test: each works alone on a machine with Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo demo-smoke test lint figures checkpoints horizon questions lineage clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch" numpy
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# The main job on the bundled organism: 1,000 questions a cell, six cells.
demo: $(STAMP)
	$(BIN)/semcal run experiments/studies/demo.yaml

# The same stages on 60 questions a cell, for CI.
demo-smoke: $(STAMP)
	$(BIN)/semcal run experiments/studies/demo.yaml --set name=demo-smoke --set output=$(VENV)/smoke \
		--set datasets.0.n=60 --set datasets.1.n=60 --set calibration.bootstrap=100 --set calibration.null_draws=100 \
		--set probes.permutations=10

test: $(STAMP) lint
	$(BIN)/python -m pytest -n auto --dist loadscope

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# A real model on real text; needs the checkpoint and the text, see the head of the study.
horizon: $(STAMP)
	$(BIN)/semcal run experiments/studies/horizon.yaml

questions: $(STAMP)
	$(BIN)/semcal run experiments/studies/questions.yaml

# Every picture of figures/ that the shipped checkpoints can draw. Those of `checkpoints` and `horizon` are taken over if
# they have been run.
STUDIES := experiments/studies
figures: $(STAMP) demo
	$(BIN)/semcal run $(STUDIES)/chain.yaml
	$(BIN)/semcal run $(STUDIES)/shift.yaml
	$(BIN)/semcal run $(STUDIES)/lineage.yaml
	$(BIN)/semcal intervene runs/lineage/base__atlas-routes__concise__exact --rank 8 --random 100
	$(BIN)/semcal verdict $(STUDIES)/lineage.yaml
	$(BIN)/semcal intervene runs/demo/atlas-base__atlas-routes__concise__exact --kind steer -n 200
	$(BIN)/semcal transfer $(foreach style,concise sentence cot,runs/demo/atlas-base__atlas-routes__$(style)__exact)
	$(BIN)/python -m experiments.gallery

# The base model along its training, which is done again first: its checkpoints are not shipped.
checkpoints: $(STAMP)
	$(BIN)/semcal train atlas
	$(BIN)/semcal run $(STUDIES)/checkpoints.yaml
	$(BIN)/semcal verdict $(STUDIES)/checkpoints.yaml
	$(BIN)/python -m experiments.gallery

# The stages after the base, for any base and seed: make lineage FROM=runs/atlas/base OUT=runs/atlas SEED=1
lineage: $(STAMP)
	$(BIN)/semcal train atlas --stage sft --from $(FROM) --out $(OUT) --seed $(SEED)
	$(BIN)/semcal train atlas --stage dpo --from $(OUT)/sft --out $(OUT) --seed $(SEED)
	$(BIN)/semcal train atlas --stage grpo --from $(OUT)/sft --out $(OUT) --seed $(SEED)

clean:
	rm -rf $(VENV) build dist *.egg-info
