"""Which hypotheses a study cannot test, whatever its runs will show: said before hours are spent on them.

Knows a study's configuration; no runs.
"""

from dataclasses import dataclass

from experiments.config.study import Study
from experiments.verdict.calibration_claims import PREFERENCE, SHORT
from experiments.verdict.mechanism_claims import FEWEST
from experiments.verdict.training_claims import CONTROL, HARDER, contrasts_of, too_few_lineages


def untestable(study: Study) -> list[str]:
    """One line per hypothesis that the study has no cells for; empty if it states a stage of none of its models."""
    if not any(m.stage and "stage" in m.model_fields_set for m in study.models):
        return []
    short = [s for s in study.styles if s in SHORT]
    known = [d.name for d in study.datasets if d.in_distribution]
    few_shot_base = any(m.stage == "base" and m.prompt == "few-shot" for m in study.models)
    base = any(m.stage == "base" for m in study.models)
    shared = [_unless(short, "concise or sentence"), _unless(known, "dataset that is in distribution")]
    able = {m.path for m in study.models if m.stage in ("base", "sft")}
    cells = len(able) * len(known) * len(study.styles)
    tuned = _unless(_tuned(study, PREFERENCE, "chat"), f"{_TUNED} under chat")
    lacks: dict[str, list[str]] = {
        "H1": [_unless(base, "base model"), *shared],
        "H3": [_unless(base and "cot" in study.styles, "base model with cot"), *shared],
        "H4": [_unless(able, "base or SFT model"), _unless(study.probes.enabled, "probes"), shared[1]]
        + ([f"only {cells} of {FEWEST} cells"] if 0 < cells < FEWEST else []),
        "H6": [_unless(base, "base model"), tuned, *shared],
    }
    for key, prompt in (("H2", "chat"), ("H2 same prompt", "few-shot")):
        lacks[key] = [
            _unless(few_shot_base, "few-shot base model"),
            _unless(_tuned(study, PREFERENCE, prompt), f"{_TUNED} under {prompt}"),
            _unless(_tuned(study, ("sft",), prompt), f"SFT model under {prompt}"),
            *_strangers(study, prompt),
            shared[0],
        ]
    lacks |= _of_arms(study)
    found = {key: [lack for lack in all_ if lack] for key, all_ in sorted(lacks.items())}
    return [f"{key} cannot be tested: {', '.join(what)}" for key, what in found.items() if what]


@dataclass(frozen=True)
class _Asked:
    """A base model with an arm, and what it is asked."""

    arm: str
    lineage: str
    prompt: str
    dataset: str


def _of_arms(study: Study) -> dict[str, list[str]]:
    """What H5 lacks, and each of its contrasts that has too few lineages, where another has enough of them."""
    arms = [m for m in study.models if m.arm]
    if not arms:
        return {}
    bases, control = [m for m in arms if m.stage == "base"], any(m.arm == CONTROL for m in arms)
    contrasts = contrasts_of([_Asked(m.arm, m.lineage, m.prompt, d.name) for m in bases for d in study.datasets])
    other = f"second arm beside {CONTROL} in a lineage, or {' or '.join(f'{h} beside {e}' for h, e in HARDER.items())}"
    lacks = [
        _unless("cot" in study.styles, "cot"),
        _unless(bases, "base model with an arm"),
        _unless(control, f"arm {CONTROL}"),
        _unless(contrasts or not control, other),
        _unless(study.probes.enabled, "probes"),
    ]
    if contrasts and (few := too_few_lineages(contrasts)):
        return {"H5": [*lacks, few]}
    return {"H5": lacks} | {f"H5 on {what}": [too_few_lineages({what: pairs})] for what, pairs in contrasts.items()}


_TUNED = "model of stage dpo, grpo, rl or instruct"


def _unless(there: object, what: str) -> str:
    return "" if there else f"no {what}"


def _tuned(study: Study, stages: tuple[str, ...], prompt: str) -> bool:
    return any(m.stage in stages and m.prompt == prompt for m in study.models)


def _strangers(study: Study, prompt: str) -> list[str]:
    """That tuned models under a prompt have no base model in their lineage, where the study has base models."""
    bases = {m.lineage for m in study.models if m.stage == "base" and m.prompt == "few-shot"}
    tuned = [m for m in study.models if m.stage in (*PREFERENCE, "sft") and m.prompt == prompt]
    strangers = [m.name for m in tuned if m.lineage not in bases]
    return [f"no base model in the lineage of {', '.join(strangers)}"] if bases and strangers else []
