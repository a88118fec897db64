"""What a study cannot test, said from its configuration alone: one line per hypothesis, with everything it lacks."""

from __future__ import annotations

import pytest

from experiments.config.study import load_study
from experiments.verdict.testable import untestable
from tests.experiments.conftest import write_study

BASE = {"path": "a/base", "name": "base", "stage": "base"}
SFT = {"path": "a/sft", "name": "sft", "stage": "sft", "prompt": "chat"}
DPO = {"path": "a/dpo", "name": "dpo", "stage": "dpo", "prompt": "chat"}
WHOLE = [BASE, SFT, DPO, SFT | {"name": "sft2", "prompt": "few-shot"}, DPO | {"name": "dpo2", "prompt": "few-shot"}]
FACTS = {"kind": "atlas", "family": "facts"}
MYTHS = {"kind": "atlas", "family": "myths"}
STYLES = ["concise", "sentence", "cot"]


def said(folder, models=WHOLE, datasets=(FACTS,), styles=STYLES, **more) -> dict[str, str]:
    study = {"name": "s", "models": list(models), "datasets": list(datasets), "styles": list(styles)} | more
    lines = untestable(load_study(write_study(folder, study)))
    return dict(line.split(" cannot be tested: ") for line in lines)


def test_a_whole_lineage_can_test_everything(tmp_path):
    assert said(tmp_path) == {}


def test_models_without_a_stage_are_no_hypothesis_of_anyone(tmp_path):
    assert said(tmp_path, models=[{"path": "a/b"}]) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"models": [BASE]},
            {
                "H2": "no model of stage dpo, grpo, rl or instruct under chat, no SFT model under chat",
                "H2 same prompt": (
                    "no model of stage dpo, grpo, rl or instruct under few-shot, no SFT model under few-shot"
                ),
                "H4": "only 3 of 4 cells",
                "H6": "no model of stage dpo, grpo, rl or instruct under chat",
            },
        ),
        (
            {"models": [m for m in WHOLE if m["stage"] != "base"]},
            {
                "H1": "no base model",
                "H2": "no few-shot base model",
                "H2 same prompt": "no few-shot base model",
                "H3": "no base model with cot",
                "H4": "only 3 of 4 cells",
                "H6": "no base model",
            },
        ),
        ({"styles": ["concise"]}, {"H3": "no base model with cot", "H4": "only 2 of 4 cells"}),
        (
            {"styles": ["cot"]},
            dict.fromkeys(("H1", "H2", "H2 same prompt", "H3", "H6"), "no concise or sentence")
            | {"H4": "only 2 of 4 cells"},
        ),
        ({"datasets": [MYTHS]}, dict.fromkeys(("H1", "H3", "H4", "H6"), "no dataset that is in distribution")),
        ({"datasets": [MYTHS, FACTS]}, {}),
        ({"probes": {"enabled": False}}, {"H4": "no probes"}),
        (
            {"models": [BASE | {"lineage": "a"}, SFT | {"lineage": "b"}, DPO | {"lineage": "b"}]},
            {
                "H2": "no base model in the lineage of sft, dpo",
                "H2 same prompt": (
                    "no model of stage dpo, grpo, rl or instruct under few-shot, no SFT model under few-shot"
                ),
            },
        ),
    ],
)
def test_each_lack_is_named_in_the_line_of_its_hypothesis(tmp_path, change, expected):
    assert said(tmp_path, **change) == expected


def arms(*names, seeds=3) -> list[dict]:
    return [BASE | {"name": f"{a}-{s}", "lineage": f"seed-{s}", "arm": a} for s in range(seeds) for a in names]


RINGS, SHUFFLES = ({"kind": "atlas", "family": family} for family in ("rings", "shuffles"))
SECOND = "no second arm beside direct in a lineage, or atlas-shuffles beside atlas-rings"


@pytest.mark.parametrize(
    ("models", "datasets", "expected"),
    [
        (arms("direct", "closed"), [RINGS], {}),
        (arms("direct"), [RINGS, SHUFFLES], {}),
        (arms("direct"), [RINGS | {"stops": 4}, SHUFFLES | {"stops": 4}], {}),
        (arms("direct"), [RINGS | {"stops": 3}, SHUFFLES | {"stops": 4}], {"H5": SECOND}),
        (arms("direct"), [RINGS], {"H5": SECOND}),
        (arms("closed"), [RINGS], {"H5": "no arm direct"}),
        (arms("direct", "closed", seeds=2), [RINGS], {"H5": "arms of 2 lineages, expected at least 3"}),
        (arms("direct", "closed", seeds=1), [RINGS], {"H5": "arms of 1 lineage, expected at least 3"}),
        (
            [*arms("direct"), *arms("closed", seeds=2)],
            [RINGS, SHUFFLES],
            {"H5 on closed − direct": "arms of 2 lineages, expected at least 3"},
        ),
        (
            [model | {"stage": "sft", "prompt": "chat"} for model in arms("direct", "closed")],
            [RINGS],
            {"H5": f"no base model with an arm, {SECOND}"},
        ),
    ],
)
def test_the_lineages_of_each_contrast_of_arms_are_counted(tmp_path, models, datasets, expected):
    found = said(tmp_path, models=models, datasets=datasets, styles=["cot"])
    assert {key: lack for key, lack in found.items() if key.startswith("H5")} == expected
