"""Each hypothesis on synthetic runs whose truth is known: it holds where it is so, and rarely where it is not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.verdict.calibration_claims import Law, base_calibrated, loss_left, thinking_harms, tuning_harms
from experiments.verdict.measured_run import Measured
from experiments.verdict.mechanism_claims import predictability_helps, removing_harms
from experiments.verdict.rules import CLAIMS, Finding, Part, decide
from semcal.calibration.nulls.twins import exact_chances

LAW = Law(null_draws=100)
STYLES = ("concise", "sentence", "cot")


@pytest.fixture(autouse=True)
def _few_twins(monkeypatch):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 100)


def made(
    model: str = "base",
    style: str = "concise",
    dataset: str = "facts",
    *,
    off: float = 0.0,
    n: int = 1000,
    seed: int = 0,
    stage: str | None = None,
    **more,
) -> Measured:
    """A run that is overconfident by `off`; runs of a dataset and seed have the same luck with the same questions."""
    luck = np.random.default_rng([seed, *dataset.encode()])
    hard, drawn = luck.beta(2, 2, n), luck.random(n)
    own = np.random.default_rng([seed, *f"{model}{style}".encode()]).normal(0, 0.03, n)
    truth = np.clip(hard + own, 0.02, 0.98)
    confidence = np.clip(truth + off, 0.01, 0.99)
    return Measured(
        label=f"{model} · {dataset} · {style}",
        folder=f"runs/{model}/{dataset}/{style}",
        model=model,
        weights=model.removesuffix("-few-shot"),
        lineage="",
        stage=stage or model.removesuffix("-few-shot"),
        step=None,
        prompt="few-shot" if model == "base" or model.endswith("few-shot") else "chat",
        dataset=dataset,
        style=style,
        confidence=confidence,
        correct=(drawn < truth).astype(float),
        group=np.arange(n).astype(str),
        chances=exact_chances(confidence),
        **more,
    )


def lineage(off: dict[str, float], n: int = 1000, seed: int = 0, styles=STYLES[:2]) -> list[Measured]:
    places = list(itertools.product(styles, ("facts", "routes")))
    return [made(model, style, dataset, off=off[model], n=n, seed=seed) for model in off for style, dataset in places]


def decided(*findings: Finding) -> list[str]:
    return [v.decision for v in decide(findings, LAW.alpha)]


# ---- the law itself --------------------------------------------------------------------------------------------------


def test_a_hypothesis_holds_only_if_every_part_is_shown():
    def finding(*p: tuple[float, float]) -> Finding:
        return Finding("H2", tuple(Part("x", "nats", 0, 0, 0, "> 0", shown, against) for shown, against in p))

    assert decided(finding((0.01, 1), (0.04, 1))) == ["holds"]
    assert decided(finding((0.01, 1), (0.06, 1))) == ["undecided"]
    assert decided(finding((0.01, 1), (0.6, 0.02))) == ["fails"]
    assert decided(finding((0.01, 0.04), (0.6, 0.04))) == ["undecided"]  # after Holm over the parts 0.08
    assert decided(finding((0.01, 1), (np.nan, np.nan))) == ["undecided"]
    assert decided(finding((0.03, 1)), finding((0.03, 1))) == ["undecided", "undecided"]  # Holm over hypotheses
    assert decided(finding((0.03, 1)), Finding("H5", reason="no run")) == ["holds", "not tested"]


def test_nothing_is_decided_on_nothing():
    stageless = [replace(run, stage=None) for run in lineage({"base": 0.0})]
    for runs in ([], stageless):
        found = [
            base_calibrated(runs, LAW),
            tuning_harms(runs, LAW, "chat"),
            tuning_harms(runs, LAW, "few-shot"),
            thinking_harms(runs, LAW),
            predictability_helps(runs, LAW),
            removing_harms(runs, LAW),
            loss_left(runs, LAW),
        ]
        assert [f.key for f in found] == list(CLAIMS)
        assert decided(*found) == ["not tested"] * len(CLAIMS)
        assert all(f.reason for f in found)


# ---- H1, H6: base models calibrated, no loss left --------------------------------------------------------------------


def test_a_calibrated_base_is_called_so_where_n_is_large():
    finding = base_calibrated(lineage({"base": 0.0}, n=3000), LAW)
    assert decided(finding) == ["holds"]
    assert len(finding.parts) == 8  # two datasets, two styles, error and loss
    assert all(part.reach < 0.05 for part in finding.parts if part.unit == "excess smECE")


def test_a_calibrated_base_of_few_questions_is_undecided_and_says_what_could_be_ruled_out():
    finding = base_calibrated(lineage({"base": 0.0}, n=60), LAW)
    assert decided(finding) == ["undecided"]
    assert max(part.reach for part in finding.parts if part.unit == "excess smECE") > 0.05


def test_one_miscalibrated_cell_fails_the_base():
    runs = [*lineage({"base": 0.0}), made("base", "concise", "third", off=0.15)]
    finding = base_calibrated(runs, LAW)
    assert decided(finding) == ["fails"]
    assert min(finding.parts, key=lambda p: p.p_against).what == "base · third · concise"


def test_a_base_that_is_off_by_delta_is_seldom_called_calibrated():
    law = replace(LAW, null_draws=40)
    wrong = [
        decided(base_calibrated([made(off=sign * 0.05, n=300, seed=s)], law)) == ["holds"]
        for s, sign in itertools.product(range(8), (-1, 1))
    ]
    assert np.mean(wrong) <= 0.15


def test_loss_is_left_by_the_tuned_alone():
    off = {"base": 0.0, "sft": 0.0, "dpo": 0.15, "grpo": 0.15}
    finding = loss_left(lineage(off, n=1500, styles=["concise"]), LAW)
    assert decided(finding) == ["holds"]
    assert finding.parts[-1].estimate > 0.02
    assert finding.parts[-1].what == "preference tuned, mean"
    assert any(p.what.startswith("sft") for p in finding.context)
    calibrated = loss_left(lineage(off | {"dpo": 0.0, "grpo": 0.0}, n=1500, styles=["concise"]), LAW)
    assert decided(calibrated) == ["fails"]


# ---- H2: tuning ------------------------------------------------------------------------------------------------------


def test_tuning_that_harms_is_found_and_prompt_and_weights_are_told_apart():
    off = {"base": 0.0, "sft": 0.0, "dpo": 0.12, "sft-few-shot": 0.0, "dpo-few-shot": 0.0}
    stages = {"sft-few-shot": "sft", "dpo-few-shot": "dpo"}
    runs = [replace(r, stage=stages.get(r.model, r.model)) for r in lineage(off)]
    chat, weights = (tuning_harms(runs, LAW, prompt) for prompt in ("chat", "few-shot"))
    assert decided(chat, weights) == ["holds", "fails"]
    assert chat.parts[1].estimate == pytest.approx(0.12, abs=0.02)  # the signed gap
    assert {p.what for p in chat.context} >= {"dpo · facts · concise − base", "sft · routes · sentence − base"}


def test_tuning_is_not_blamed_where_sft_harms_as_much():
    assert decided(tuning_harms(lineage({"base": 0.0, "sft": 0.12, "dpo": 0.12}), LAW, "chat")) == ["fails"]


def test_underconfident_tuning_is_no_overconfidence():
    assert decided(tuning_harms(lineage({"base": 0.0, "sft": 0.0, "dpo": -0.12}), LAW, "chat")) == ["fails"]


def test_without_sft_half_of_the_claim_is_not_the_claim():
    finding = tuning_harms(lineage({"base": 0.0, "dpo": 0.12}), LAW, "chat")
    assert decided(finding) == ["not tested"]
    assert "no model of stage sft" in finding.reason
    assert finding.context


def test_few_questions_leave_a_small_harm_undecided():
    finding = tuning_harms(lineage({"base": 0.0, "sft": 0.0, "dpo": 0.04}, n=100), LAW, "chat")
    assert decided(finding) == ["undecided"]
    assert finding.parts[0].reach > 0.02


def test_a_raise_of_delta_is_seldom_ruled_out_though_noise_hides_half_of_it():
    found = []
    for seed in range(12):
        base, sft, dpo = made(n=300, seed=seed), made("sft", n=300, seed=seed), made("dpo", off=0.05, n=300, seed=seed)
        found.append(tuning_harms([base, sft, dpo], LAW, "chat"))
        swapped = [base, replace(sft, stage="dpo"), replace(dpo, stage="sft")]
        assert decided(tuning_harms(swapped, LAW, "chat")) != ["holds"]
    assert np.mean([f.parts[0].estimate for f in found]) < 0.04
    assert np.mean([f.parts[0].p_against <= 0.05 for f in found]) <= 0.1


def test_under_no_effect_tuning_and_thinking_seldom_harm():
    harmed, thought = [], []
    for seed in range(40):
        # Their nulls count as known and alike, so nothing is simulated for them.
        models = (("base", "concise"), ("sft", "concise"), ("dpo", "concise"), ("base", "cot"))
        runs = [replace(made(m, style, n=200, seed=seed), chances=None, null=0.05) for m, style in models]
        harmed += [p.p <= 0.05 for p in tuning_harms(runs, LAW, "chat").parts[:1]]
        thought += [p.p <= 0.05 for p in thinking_harms(runs, LAW).parts]
    assert np.mean(harmed) <= 0.1
    assert np.mean(thought) <= 0.1


def test_the_last_checkpoint_stands_for_its_stage():
    early = [replace(r, model="step-10", step=10) for r in lineage({"base": 0.2})]
    late = [replace(r, model="step-20", step=20) for r in lineage({"base": 0.0}, n=3000)]
    finding = base_calibrated([*early, *late], LAW)
    assert len(finding.parts) == 8
    assert decided(finding) == ["holds"]


# ---- H3: chain of thought --------------------------------------------------------------------------------------------


def test_thinking_that_harms_is_found_with_its_sign():
    runs = [*lineage({"base": 0.0}), made(style="cot", off=-0.12), made(style="cot", dataset="routes", off=-0.12)]
    finding = thinking_harms(runs, LAW)
    assert decided(finding) == ["holds"]
    assert finding.context[0].unit == "signed gap"
    assert finding.context[0].high < 0
    assert decided(thinking_harms(lineage({"base": 0.0}, styles=STYLES), LAW)) == ["fails"]
    assert decided(thinking_harms(lineage({"base": 0.0}), LAW)) == ["not tested"]


# ---- H4: predictability ----------------------------------------------------------------------------------------------


def grid(seed: int, models: int, *, rung: str = "mlp", n: int = 150) -> list[Measured]:
    """Runs whose miscalibration has effects of model and style and is the less, the better they are predictable."""
    rng = np.random.default_rng(seed)
    size = (models, 2, 3)
    off = np.abs(rng.normal(0, 0.1, (models, 1, 1)) + rng.normal(0, 0.1, (1, 1, 3)) + rng.normal(0, 0.02, size))
    entropy = rng.random(size)
    return [
        made(
            f"m{m}",
            STYLES[s],
            ("facts", "routes")[d],
            off=float(off[m, d, s]),
            n=n,
            seed=seed,
            stage="base",
            explained={rung: float(-off[m, d, s])},
            entropy=float(entropy[m, d, s]),
        )
        for m, d, s in np.ndindex(*size)
    ]


def test_predictability_that_goes_with_calibration_is_found():
    finding = predictability_helps(grid(0, 5, n=800), LAW)
    assert decided(finding) == ["holds"]
    assert finding.parts[0].estimate < -0.8
    assert "given accuracy and entropy" in finding.parts[1].what


def test_the_highest_rung_decides_and_a_linear_failure_refutes_nothing():
    runs = [replace(r, explained={"linear": -r.explained["mlp"], "mlp": r.explained["mlp"]}) for r in grid(1, 5)]
    finding = predictability_helps(runs, LAW)
    assert {p.what.split(",")[0] for p in finding.parts} == {"mlp"}
    assert {p.what.split(",")[0] for p in finding.context} == {"linear"}
    linear = predictability_helps([replace(r, explained={"linear": r.explained["linear"]}) for r in runs], LAW)
    assert linear.parts[0].estimate > 0.5
    assert decided(linear) == ["undecided"]


def test_a_model_with_a_hole_in_its_grid_is_named_and_left_out():
    runs = grid(0, 5)
    finding = predictability_helps(runs[1:], LAW)
    assert "24 runs of 4 models, without m0" in finding.parts[0].what
    uneven = [*runs[:-1], made("m4", "cot", "routes", n=90, explained={"mlp": 0.1})]
    assert "differ in n (90, 150)" in predictability_helps(uneven, LAW).reason


def test_one_weights_under_two_prompts_are_one_model():
    runs = grid(0, 4)
    again = [replace(r, model=f"{r.model}-chat", prompt="chat", weights=r.weights) for r in runs if r.model == "m0"]
    runs = [replace(r, prompt="few-shot") for r in runs]
    assert "24 runs of 4 models" in predictability_helps([*runs, *again], LAW).parts[0].what


# ---- H5: interventions -----------------------------------------------------------------------------------------------


def ablations(lead: float, draws: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for layer in range(3):
        for control in ("", *["isotropic"] * draws, *["matched"] * draws):
            harm = lead if control == "" else 0.0
            rows.append({"hook": f"blocks.{layer}", "control": control, "smece": 0.05 + harm + rng.normal(0, 0.01)})
    common = {"context": "c", "kind": "ablate", "name": "probe", "position": "last", "rank": 8, "size": 0.0}
    return pd.DataFrame(rows).assign(**common, null_mean=0.03)


def test_removing_what_is_read_harms_more_than_random_subspaces():
    run = made()
    assert decided(removing_harms([replace(run, interventions=ablations(0.05))], LAW)) == ["holds"]
    assert decided(removing_harms([replace(run, interventions=ablations(-0.05))], LAW)) == ["fails"]
    assert decided(removing_harms([replace(run, interventions=ablations(0.05, draws=2))], LAW)) != ["fails"]
    p = [removing_harms([replace(run, interventions=ablations(0.0, 20, s))], LAW).p for s in range(60)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    finding = removing_harms([run], LAW)
    assert decided(finding) == ["not tested"]
    assert "`semcal intervene runs/base/facts/concise`" in finding.reason
