"""Each hypothesis on synthetic runs whose truth is known: it holds where it is so, and rarely where it is not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from experiments.bench.validity import planted_runs
from experiments.bench.validity.planted_runs import STYLES, with_gap
from experiments.verdict.calibration_claims import (
    SHORT,
    Law,
    base_calibrated,
    loss_left,
    p_of_mean_error,
    thinking_harms,
    tuning_harms,
)
from experiments.verdict.measured_run import Measured
from experiments.verdict.mechanism_claims import predictability_helps
from experiments.verdict.rules import CLAIMS, Finding, Part, decide
from experiments.verdict.training_claims import training_moves
from semcal.calibration.estimators.unparsed import unparsed_bounds
from semcal.calibration.nulls.twins import chances_of
from semcal.semantics.class_table import ClassTable

pytestmark = pytest.mark.long

LAW = Law(null_draws=100)
# Runs are frozen and keep what was computed of them, so tests share those that are planted alike.
made, mechanism = cache(planted_runs.made), cache(planted_runs.mechanism)


@pytest.fixture(autouse=True)
def _few_twins(monkeypatch):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 100)


def lineage(off: dict[str, float], n: int = 1000, seed: int = 0, styles=STYLES[:2]) -> list[Measured]:
    places = list(itertools.product(styles, ("facts", "routes")))
    return [made(model, style, dataset, off=off[model], n=n, seed=seed) for model in off for style, dataset in places]


def staged(run: Measured, stage: str | None) -> Measured:
    """The run as one of another stage, with what was computed of it: no figure depends on the stage."""
    other = replace(run, stage=stage)
    vars(other).update({name: figure for name, figure in vars(run).items() if name not in vars(other)})
    return other


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
            training_moves(runs, LAW),
            loss_left(runs, LAW),
        ]
        assert [f.key for f in found] == list(CLAIMS)
        assert decided(*found) == ["not tested"] * len(found)
        assert all(f.reason for f in found)


# ---- H1, H6: base models calibrated, no loss left --------------------------------------------------------------------


def test_a_calibrated_base_is_called_so_where_n_is_large():
    finding = base_calibrated(lineage({"base": 0.0}, n=3000), LAW)
    assert decided(finding) == ["holds"]
    assert finding.parts[0].reach < 0.05
    assert len(finding.cells) == 4  # two datasets, two styles
    assert all(np.isfinite([c.smece, c.binned, c.loss, c.within]).all() for c in finding.cells)
    assert "4 of 4 cells within 0.05, 0 certainly above" in finding.context[0].what


def test_a_calibrated_base_of_few_questions_is_undecided_and_says_what_could_be_ruled_out():
    finding = base_calibrated([made(n=60)], LAW)
    assert decided(finding) == ["undecided"]
    assert finding.parts[0].reach > 0.05


def test_one_miscalibrated_cell_is_listed_and_does_not_decide_the_mean():
    runs = [*lineage({"base": 0.0}, n=3000), made("base", "concise", "third", off=0.12, n=3000)]
    finding = base_calibrated(runs, LAW)
    assert decided(finding) == ["holds"]
    assert "4 of 5 cells within 0.05, 1 certainly above" in finding.context[0].what
    assert decided(base_calibrated(lineage({"base": 0.12}), LAW)) == ["fails"]


@pytest.mark.parametrize(("off", "expected"), [(0.0, "holds"), (0.01, "not fails"), (0.10, "fails")])
def test_twelve_cells_of_four_models_are_judged_by_their_mean(off, expected):
    """Planted truth."""
    places = itertools.product("abcd", ("concise",), ("facts", "routes", "third"))
    runs = [made(m, s, d, off=off, n=2000, seed=0, stage="base") for m, s, d in places]
    finding = base_calibrated(runs, LAW)
    assert len(finding.cells) == 12
    decision = decided(finding)[0]
    assert decision != "fails" if expected == "not fails" else decision == expected


def test_a_mean_error_of_delta_is_seldom_called_smaller():
    """At the boundary the size is at most alpha; 4 of 30 or fewer keeps a test of size 5 % in 98 of 100 cases."""
    wrong = []
    for seed, sign in itertools.product(range(15), (-1, 1)):
        runs = [made("a", s, d, off=sign * 0.05, n=300, seed=seed) for s in SHORT for d in ("facts", "routes")]
        wrong.append(p_of_mean_error(runs, LAW) <= 0.05)
    assert sum(wrong) <= 4


def test_models_count_as_a_sample():
    """One model of two that is off leaves the mean undecided, however many questions there are."""
    runs = [made(m, s, off=off, n=3000, stage="base") for m, off in (("a", 0.0), ("b", 0.04)) for s in SHORT]
    assert p_of_mean_error(runs, LAW) <= 0.05
    assert decided(base_calibrated(runs, LAW)) == ["undecided"]


def test_what_is_not_in_distribution_decides_nothing_and_has_rows_of_its_own():
    odd = [made("base", s, "myths", off=0.3, in_distribution=False) for s in STYLES]
    finding = base_calibrated([*lineage({"base": 0.0}, n=3000), *odd], LAW)
    assert decided(finding) == ["holds"]
    assert sum(p.what.startswith("not in distribution: base · myths") for p in finding.context) == 2
    assert decided(base_calibrated(odd, LAW), thinking_harms(odd, LAW)) == ["not tested", "not tested"]
    assert all(p.what.startswith("not in distribution") for p in thinking_harms(odd, LAW).context)


def test_a_model_calibrated_whenever_it_answers_is_not_said_to_be_harmed_by_thinking():
    """20 % of the answers in cot are unparsed: read as wrong they would look like miscalibration."""
    rng = np.random.default_rng(0)
    pi = rng.dirichlet(np.ones(4), 800)
    counts = np.array([rng.multinomial(40, row) for row in pi])
    gold = np.array([rng.choice(4, p=row) for row in pi])
    right = np.eye(5, dtype=bool)[gold]
    table = ClassTable.of_arrays(np.column_stack([counts, np.full(800, 10)]), right, np.full(800, 4))
    bounds = unparsed_bounds(table)
    found, chances = table.by_count, chances_of(table, by_mass=False)
    cot = replace(
        made(style="cot", n=800), confidence=found.plug_in, correct=found.correct, chances=chances, unparsed=bounds
    )
    finding = thinking_harms([made(n=800), cot], LAW)
    assert finding.parts[0].p <= 0.05  # as the rule without bounds would have it
    assert decided(finding) == ["cannot be decided"]
    assert finding.undecidable.startswith("20 % unparsed in base · facts · cot; ")
    assert bounds.parsed_only.smece < 0.06 < bounds.most
    long = replace(cot, unparsed=None, truncated=0.3)
    assert (
        "30 % truncated in base · facts · cot; raise sampling.max_new_tokens"
        in thinking_harms([made(n=800), long], LAW).undecidable
    )


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
    assert finding.parts[-1].what == "preference tuned, mean of 4 cells"
    assert any(p.what.startswith("sft") for p in finding.context)
    calibrated = loss_left(lineage(off | {"dpo": 0.0, "grpo": 0.0}, n=1500, styles=["concise"]), LAW)
    assert decided(calibrated) == ["fails"]


# ---- H2: tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "can"), [(150, False), (3000, True)])
def test_what_can_be_ruled_out_of_sft_lies_above_the_floor_of_smece(n, can):
    finding = tuning_harms(lineage({"base": 0.0, "sft": 0.0, "dpo": 0.2}, n=n, styles=["concise"]), LAW, "chat")
    steady = next(part for part in finding.parts if part.what == "SFT − base")
    assert (steady.reach < LAW.delta) is can
    assert (steady.p <= LAW.alpha) is can


def test_tuning_that_harms_is_found_and_prompt_and_weights_are_told_apart():
    off = {"base": 0.0, "sft": 0.0, "dpo": 0.12, "sft-few-shot": 0.0, "dpo-few-shot": 0.0}
    stages = {"sft-few-shot": "sft", "dpo-few-shot": "dpo"}
    runs = [staged(r, stages.get(r.model, r.model)) for r in lineage(off)]
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
        swapped = [base, staged(sft, "dpo"), staged(dpo, "sft")]
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
    assert len(finding.cells) == 4
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


def test_three_seeds_that_disagree_are_no_proof_that_thinking_harms():
    """Thousands of questions say well what each of three models does, and little of a fourth."""

    def asked(off: float, model: str) -> list[Measured]:
        more = {"stage": "base", "n": 2000}
        short = made(model, "concise", "facts", off=0.0, **more)
        return [short, made(model, "cot", "facts", off=off, **more)]

    alike, apart = (
        thinking_harms([run for i, off in enumerate(offs) for run in asked(off, f"seed-{i}")], LAW)
        for offs in ((0.1, 0.1, 0.1), (0.0, 0.02, 0.28))
    )
    assert decided(alike) == ["holds"]
    assert decided(apart) == ["undecided"]
    assert apart.parts[0].estimate == pytest.approx(alike.parts[0].estimate, abs=0.02)
    assert apart.parts[0].low < 0 < alike.parts[0].low


# ---- H4: predictability ----------------------------------------------------------------------------------------------


def test_the_planted_relation_is_found():
    assert [decided(predictability_helps(mechanism(s), LAW))[0] for s in range(2)] == ["holds"] * 2


def test_an_easily_predictable_cell_that_is_miscalibrated_contradicts_the_mechanism():
    for seed in range(2):
        runs = mechanism(seed, truth=lambda gap: 0.15 if gap < 0.1 else 0.0)
        finding = predictability_helps(runs, LAW)
        assert decided(finding) == ["fails"]
        assert "3 of 18 cells" in finding.parts[0].what


def test_tuned_models_pooled_classes_and_myths_do_not_enter_the_mechanism():
    runs = mechanism(0)
    dpo = with_gap(made("dpo", off=0.3), 0.0)
    myths = with_gap(made("a", dataset="myths", off=0.3, stage="base", in_distribution=False), 0.0)
    pooled = with_gap(made("a", dataset="trivia", off=0.3, stage="base"), 0.0, pooled=0.5)
    assert "18 cells" in predictability_helps([*runs, dpo, myths, pooled], LAW).parts[0].what
    finding = predictability_helps([replace(r, pooled=0.5) for r in runs], LAW)
    assert decided(finding) == ["not tested"]
    assert "50% of the mass" in finding.reason
    other = [with_gap(r, 0.1, "linear") if i == 0 else r for i, r in enumerate(runs)]
    assert "share no rung" in predictability_helps(other, LAW).reason


def test_without_an_easily_predictable_cell_the_mechanism_is_not_shown():
    runs = [with_gap(r, 0.3 + r.excess.estimate) for r in mechanism(0)]
    assert decided(predictability_helps(runs, LAW)) == ["undecided"]


def test_a_gap_is_small_if_any_probe_finds_it_so():
    """A weaker rung that predicts well is as good a witness; the slope is still that of the rung that all share."""
    runs = [with_gap(r, 0.3 + r.excess.estimate) for r in mechanism(0)]
    rung = next(iter(runs[0].kl_gaps))
    both = [replace(r, kl_gaps={**r.kl_gaps, "linear": with_gap(r, 0.0, "linear").kl_gaps["linear"]}) for r in runs]
    assert rung != "linear"
    parts = predictability_helps([both[0], *runs[1:]], LAW).parts
    assert "1 of 18 cells" in parts[0].what
    assert f"({rung})" in parts[1].what


def test_the_slope_within_a_style_is_beside_that_of_all():
    runs = mechanism(0)
    finding = predictability_helps(runs, LAW)
    beside = [p for p in finding.context if "slope on the KL gap" in p.what]
    styles = {r.style for r in runs}
    assert [p.what.split(":")[0] for p in beside] == [s for s in ("concise", "sentence", "cot") if s in styles]
    assert all(not p.shown for p in beside)


def test_an_untrained_checkpoint_is_no_counterexample():
    """It says the same to everything: easy to predict, and as far from calibrated as can be."""
    runs = [replace(r, step=4000) for r in mechanism(0)]
    early = with_gap(made("a", "concise", "facts", off=0.4, stage="base"), 0.0)
    first = [replace(early, step=step, label=f"step {step}", lineage=runs[0].lineage or "") for step in (0, 300)]
    first = [replace(r, model=runs[0].model, lineage="one") for r in first]
    runs = [replace(r, lineage="one") if r.model == runs[0].model else r for r in runs]
    finding = predictability_helps([*first, *runs], LAW)
    assert decided(finding) == decided(predictability_helps(runs, LAW)) == ["holds"]
    assert not {"step 0", "step 300"} & set(finding.runs)
    (along,) = [p for p in finding.context if p.what.startswith("along training: ")]
    assert "19 cells" in along.what


def test_the_slope_within_one_kind_of_dataset_is_beside_that_of_its_style():
    runs = [replace(r, dataset=f"atlas-{r.dataset}-{at % 5}-stop") for at, r in enumerate(mechanism(0))]
    beside = [p.what.split(": ")[0] for p in predictability_helps(runs, LAW).context if "slope on the KL" in p.what]
    assert beside == ["concise", "sentence", "cot"]  # three cells of a kind are too few
    more = [replace(r, model=f"{r.model}2", lineage=f"{r.model}2", label=f"{r.label}2") for r in runs]
    beside = [p.what.split(": ")[0] for p in predictability_helps([*runs, *more], LAW).context if "slope on" in p.what]
    assert beside == [f"{s}{kind}" for s in ("concise", "sentence", "cot") for kind in ("", *KINDS)]


KINDS = (", atlas-facts", ", atlas-routes")


def test_what_every_lineage_repeats_is_not_taken_for_a_slope():
    """Three models of one gap and one error in each of six places: six points, not eighteen."""
    places = [(dataset, style) for dataset in ("facts", "routes") for style in ("concise", "sentence", "cot")]
    known = zip(places, (0.5, 0.1, 0.4, 0.2, 0.0, 0.3), (0.1, 0.05, 0.02, 0.0, 0.0, 0.1), strict=True)
    runs = [
        with_gap(made(model, style, dataset, off=error, n=600, stage="base"), gap)
        for (dataset, style), gap, error in known
        for model in "abc"
    ]
    slope = predictability_helps(runs, LAW).parts[1]
    assert "18 cells of 3 lineages in 6 places" in slope.what
    assert slope.low < 0 < slope.high
    assert slope.reach > 0


def test_cells_of_different_n_are_weighed_and_not_refused():
    runs = mechanism(0)
    mixed = [*runs[:9], *mechanism(0, n=300)[9:]]
    mixed = [r for r in mixed if not (r.dataset == "routes" and len(r.correct) == 300)]
    assert predictability_helps(mixed, LAW).parts


# ---- H5: the intervention on training --------------------------------------------------------------------------------

arms = cache(partial(planted_runs.arms, n=1000))


def test_calibration_that_follows_the_gap_is_called_so():
    finding = training_moves(arms(0.1, 0), LAW)
    assert decided(finding) == ["holds"]
    assert [p.what for p in finding.parts] == [
        "chains − direct",
        "closed − direct",
        "atlas-shuffles − atlas-rings (direct)",
    ]
    assert len(finding.cells) == 18


def test_a_gap_that_moves_without_an_error_contradicts_it():
    assert decided(training_moves(arms(0.0, 1), LAW)) == ["fails"]


def test_an_arm_whose_accuracy_differs_decides_nothing():
    """Chance agreement of confidence and accuracy in weaker models is no mechanism."""
    runs = [replace(r, correct=r.correct * (np.arange(1000) % 5 > 0)) if r.arm == "closed" else r for r in arms(0.1, 0)]
    finding = training_moves(runs, LAW)
    assert "closed − direct" not in {p.what for p in finding.parts}
    apart = [p for p in finding.context if p.what.startswith("closed − direct, ") and p.unit == "accuracy"]
    assert [p.what[-6:] for p in apart] == ["seed-0", "seed-1", "seed-2"]
    assert max(p.estimate for p in apart) < -0.05


def test_accuracies_that_differ_in_opposite_directions_are_not_alike():
    """Where one seed has learnt the one arm and another seed the other, their mean is no match."""
    third = np.arange(1000) % 3 == 0
    worse = {("closed", "seed-0"), ("direct", "seed-1")}
    runs = [replace(r, correct=r.correct * ~third) if (r.arm, r.lineage) in worse else r for r in arms(0.1, 0)]
    finding = training_moves(runs, LAW)
    assert "closed − direct" not in {p.what for p in finding.parts}


def test_a_bad_cell_voids_its_own_contrast_alone():
    cut = [replace(r, truncated=0.5) if r.arm == "closed" and r.lineage == "seed-1" else r for r in arms(0.1, 0)]
    finding = training_moves(cut, LAW)
    assert [p.what for p in finding.parts] == ["chains − direct", "atlas-shuffles − atlas-rings (direct)"]
    assert decided(finding) == ["holds"]
    every = [replace(r, truncated=0.5) for r in arms(0.1, 0)]
    assert "truncated in" in training_moves(every, LAW).undecidable


def test_a_contrast_of_two_lineages_shows_nothing():
    runs = [r for r in arms(0.1, 0) if (r.arm, r.lineage) != ("closed", "seed-2")]
    assert "closed − direct" not in {p.what for p in training_moves(runs, LAW).parts}


def test_arms_that_do_not_move_the_gap_decide_nothing():
    alike = [with_gap(r, 0.3, "generative") for r in arms(0.1, 0)]
    finding = training_moves(alike, LAW)
    assert decided(finding) == ["cannot be decided"]
    assert "no contrast moved the gap" in finding.undecidable


def test_arms_without_the_control_or_in_short_styles_are_not_tested():
    without = [r for r in arms(0.1, 0) if r.arm != "direct"]
    short = [replace(r, style="concise") for r in arms(0.1, 0)]
    assert decided(training_moves(without, LAW), training_moves(short, LAW)) == ["not tested"] * 2


def test_two_training_seeds_are_too_few_to_say_how_seeds_differ():
    finding = training_moves([r for r in arms(0.1, 0) if r.lineage != "seed-2"], LAW)
    assert decided(finding) == ["not tested"]
    assert finding.reason == "arms of 2 lineages, expected at least 3"
