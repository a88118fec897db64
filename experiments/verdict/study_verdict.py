"""`semcal verdict`: the runs of a study read, checked to be comparable, and every hypothesis decided on them.

Knows run folders and configurations; the rules are in `rules.py`, the tables in `report/verdict_tables.py`. No model is
loaded.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.compare.pairs import Scored, check_comparable, scored
from experiments.config.run_folder import run_of
from experiments.config.study import LABELS, Cell, Study
from experiments.verdict.calibration_claims import Law, base_calibrated, loss_left, thinking_harms, tuning_harms
from experiments.verdict.lag_claims import with_lag
from experiments.verdict.measured_run import NULL_DRAWS, Measured
from experiments.verdict.mechanism_claims import predictability_helps
from experiments.verdict.rules import CLAIMS, MOST_UNPARSED, Finding, Verdict, decide
from experiments.verdict.stored_gaps import kl_gaps, telling_losses
from experiments.verdict.training_claims import training_moves
from probes.targets.open import pooled_share
from semcal.calibration.estimators.unparsed import unparsed_bounds
from semcal.calibration.nulls.null import null_of
from semcal.calibration.nulls.twins import chances_of
from semcal.errors import UserError
from semcal.runs.files import plain, write_atomically
from semcal.runs.run import Run


@dataclass(frozen=True)
class Judgement:
    """The verdicts of a study, one per hypothesis in the order of `CLAIMS`.

    Attributes:
        runs: number of runs read.
        read_by: "by mass", or "plug-in" where a run has no log-probabilities.
        missing: cells that are not finished, and what they lack.
    """

    study: Study
    verdicts: tuple[Verdict, ...]
    runs: int
    read_by: str
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of verdict.json."""
        return {
            "study": self.study.name,
            "delta": self.study.calibration.delta,
            "level": self.study.calibration.level,
            "seed": self.study.seed,
            "runs": self.runs,
            "confidence": self.read_by,
            "missing": list(self.missing),
            "hypotheses": [
                {"claim": CLAIMS[v.finding.key], "decision": v.decision, "p": v.finding.p, "p_holm": v.p_holm}
                | {"p_against": v.finding.p_against, "p_against_holm": v.p_against_holm}
                | asdict(v.finding)
                for v in self.verdicts
            ],
        }


def judge_study(study: Study, tell: Callable[[str], None] = lambda _: None) -> Judgement:
    """Every hypothesis on the scored runs of a study.

    Raises:
        UserError: no scored run; none that most of the answers of could be parsed; runs that cannot be compared.
    """
    check_parsed(study)
    found, missing = _runs_of(study)
    check_alike(found)
    check_lineages(study)
    tell("reading runs")
    # One run without log-probabilities, and all are read by shares of their samples.
    by_mass = all(r.table.by_mass_left_out is not None for r in found)
    runs, read_by = [measured(r, by_mass) for r in found], "by mass" if by_mass else "plug-in"
    law = Law(delta=study.calibration.delta, level=study.calibration.level, seed=study.seed)
    tests: dict[str, Callable[[], Finding]] = {
        "H1": lambda: base_calibrated(runs, law),
        "H2": lambda: tuning_harms(runs, law, "chat"),
        "H2 same prompt": lambda: tuning_harms(runs, law, "few-shot"),
        "H3": lambda: thinking_harms(runs, law),
        "H4": lambda: with_lag(predictability_helps(runs, law), runs, law),
        "H5": lambda: training_moves(runs, law),
        "H6": lambda: loss_left(runs, law),
    }
    findings = []
    for key, test in tests.items():
        tell(f"testing {key}")
        findings.append(test())
    return Judgement(study, tuple(decide(findings, law.alpha)), len(runs), read_by, tuple(missing))


# ---- which runs, and whether they compare ----------------------------------------------------------------------------


def _runs_of(study: Study) -> tuple[list[Scored], list[str]]:
    """The scored runs of a study (`run_of`) under the names it gives them now, and what the other cells lack."""
    found, missing = [], []
    for cell in study.cells():
        run = run_of(cell)
        if not run.calibration():
            started = (run.folder / "config.yaml").is_file()
            missing.append(f"{cell.label}: {'not finished' if started else 'not run'}")
            continue
        if cell.probes.enabled and run.probes().empty:
            missing.append(f"{cell.label}: not probed, so left out of H4")
        elif cell.probes.enabled and "gap" not in run.probes():
            missing.append(f"{cell.label}: probed without a KL gap, so left out of H4; `semcal probe RUN` computes it")
        read = scored(run)
        found.append(replace(read, cell=_named_now(read.cell, cell)))
    if not found:
        raise UserError(f"no run of {study.folder} is scored; `semcal run` the study first")
    return found, missing


def check_parsed(study: Study) -> None:
    """Refuse a study in which no hypothesis can be decided, before its tables are read.

    Raises:
        UserError: more than MOST_UNPARSED of the answers of every scored run are unparsed.
    """
    read = [(cell.label, run_of(cell).calibration()) for cell in study.cells()]
    shares = {label: float(c["unparsed_share"]) for label, c in read if c}
    if shares and min(shares.values()) > MOST_UNPARSED:
        least = min(shares, key=lambda label: shares[label])
        raise UserError(
            f"{study.folder}: no hypothesis can be decided, since at least {shares[least]:.0%} of the answers of every "
            f"scored run are unparsed (least in {least}; expected at most {MOST_UNPARSED:.0%}); change the styles' "
            "instructions or exemplars, raise sampling.max_new_tokens, or use another B"
        )


def _named_now(stored: Cell, now: Cell) -> Cell:
    """A cell as it was run, its model and dataset labelled as the study labels them now."""
    labels = {key: getattr(now.model, key) for key in (*LABELS, "name")}
    known = {"in_distribution": now.dataset.in_distribution}
    parts = {"model": stored.model.model_copy(update=labels), "dataset": stored.dataset.model_copy(update=known)}
    return stored.model_copy(update=parts)


def check_alike(runs: Sequence[Scored]) -> None:
    """Refuse runs whose figures differ for reasons that the hypotheses are not about.

    Raises:
        UserError: two runs that differ in M, or on one dataset in n, B or questions, naming both.
    """
    for first, run in itertools.pairwise(runs):
        _refuse_unless_equal("M", first, run, first.m, run.m)
        _refuse_unless_equal("temperature", first, run, first.cell.sampling.temperature, run.cell.sampling.temperature)
    kinds = sorted({r.cell.semantics.label for r in runs})
    by_dataset: dict[str, Scored] = {}
    for run in runs:
        first = by_dataset.setdefault(run.cell.dataset.name, run)
        if first is run:
            continue
        _refuse_unless_equal("n", first, run, len(first.questions), len(run.questions))
        names = first.calibration["semantics"], run.calibration["semantics"]
        _refuse_unless_equal("B", first, run, *names, fix=f"--set semantics to one of {', '.join(kinds)}")
        check_comparable(first, run)
        if list(first.questions.index) != list(run.questions.index):
            raise UserError(
                f"{first.folder} and {run.folder} differ in their questions; give the datasets the same seed"
            )


def _refuse_unless_equal(what: str, a: Scored, b: Scored, one: Any, two: Any, fix: str = "") -> None:
    if one != two:
        fix = fix or "a verdict needs them equal, so run one of them again"
        raise UserError(f"{a.folder} and {b.folder} differ in {what} ({one} and {two}); {fix}")


def check_lineages(study: Study) -> None:
    """Refuse lineages in which the base of the tuned models is ambiguous.

    Raises:
        UserError: a lineage with two finished few-shot base models and a tuned one.
    """
    for lineage in {m.lineage for m in study.models}:
        kin = [m for m in study.models if m.lineage == lineage]
        bases = [m.name for m in kin if m.stage == "base" and m.step is None and m.prompt == "few-shot"]
        if len(bases) > 1 and any(m.stage not in ("base", None) for m in kin):
            raise UserError(
                f"models: lineage {lineage!r} has {len(bases)} base models ({', '.join(bases)}), so which "
                "one its tuned models come from is ambiguous; give each base a lineage of its own"
            )


# ---- what they say ---------------------------------------------------------------------------------------------------


def measured(run: Scored, by_mass: bool) -> Measured:
    cell, folder, table = run.cell, Run(run.folder), run.table
    chances = chances_of(table, by_mass=by_mass)
    null = float("nan") if chances else null_of(table, null_draws=NULL_DRAWS, seed=cell.seed).mean
    found = table.by_mass_left_out if by_mass else table.by_count
    probes, group = folder.probes(), dict(zip(table.questions, table.groups.tolist(), strict=True))
    truncated = run.calibration.get("truncated_share")
    assert found is not None
    return Measured(
        label=cell.label,
        folder=str(run.folder),
        model=cell.model.name,
        weights=str(folder.manifest()["weights_hash"]),
        lineage=cell.model.lineage,
        stage=cell.model.stage,
        step=cell.model.step,
        arm=cell.model.arm,
        prompt=cell.model.prompt,
        dataset=cell.dataset.name,
        style=cell.style,
        confidence=found.plug_in,
        correct=found.correct,
        group=table.groups,
        chances=chances,
        null=null,
        smoothing=None if by_mass else run.m,
        in_distribution=bool(cell.dataset.in_distribution),
        unparsed=unparsed_bounds(table, by_mass=by_mass) if table.unparsed_share > 0 else None,
        seen_mass=float(table.seen_mass.mean()),
        truncated=float("nan") if truncated is None else float(truncated),
        alike=(run.calibration.get("chains") or {}).get("warning") or "",
        kl_gaps=kl_gaps(
            telling_losses(folder.probe_losses(), probes), group, stratum=cell.dataset.name, seed=cell.seed
        ),
        pooled=0.0 if probes.empty else pooled_share(table, cell.probes.max_classes),
        seed=cell.seed,
    )


def write_verdict(judgement: Judgement, text: str, folder: Path) -> list[str]:
    """Write verdict.json and verdict.md to a folder; returns their names."""
    whole = json.dumps(plain(judgement.to_dict()), indent=1, ensure_ascii=False) + "\n"
    bodies = {"verdict.json": whole, "verdict.md": text}
    for name, body in bodies.items():
        write_atomically(folder / name, lambda path, body=body: path.write_text(body, encoding="utf-8"))
    return list(bodies)
