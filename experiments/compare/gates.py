"""Thresholds on each confidence that a run has, and what they would do to questions to come (`semcal gate`).

Knows run folders; the guarantees are in `semcal.calibration.inference.risk_control`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.atlas.world_questions import query_of, world_of
from experiments.config.run_folder import LOOKS, stored_cell
from experiments.config.study import AtlasConfig
from experiments.report.figures.figure_files import save_figures
from experiments.terminal.fitted_table import FittedTable
from semcal.arrays import FloatArray
from semcal.calibration.inference.risk_control import Gate, Guarantee, fewest_groups, gate
from semcal.calibration.plots.gate_curve import gate_curve
from semcal.errors import UserError
from semcal.runs.files import replacing, write_atomically
from semcal.runs.run import WITHOUT_TEXTS, Run
from semcal.semantics.class_table import ClassTable

SAMPLED = "B-confidence"
FILES = ("gates.csv", "gates.png", "gates.svg", "gates.pdf")
TILTED = f"{LOOKS}/tilt/classes.parquet"  # the run's questions, asked again of tilted models (`semcal tilt`)


@dataclass(frozen=True)
class Source:
    """A confidence that a run has: [question] how sure, how right, labels of dependent questions, and the question and
    class that it is about (of tied classes the first)."""

    confidence: FloatArray
    correct: FloatArray
    group: list[str]
    questions: Sequence[str] = ()
    answers: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """A threshold on one confidence; `reason`: why there is none, or none that lets a question be answered."""

    source: str
    risk: float
    guarantee: Guarantee
    found: Gate | None
    reason: str = ""


def sources(run: Run) -> dict[str, Source]:
    """Name -> confidence: of the samples, and of the class probe and the tilted model where there is one."""
    table = run.class_table()
    found = {SAMPLED: _of(table)}
    if not (probe := run.probe_predictions()).empty:
        group = dict(zip(table.questions, table.groups.tolist(), strict=True))
        labels = [group[str(question)] for question in probe["question_id"]]
        asked, said = probe["question_id"].astype(str).tolist(), probe["class"].tolist()
        sure, right = (probe[name].to_numpy(float) for name in ("confidence", "correct"))
        found["class probe"] = Source(sure, right, labels, asked, said)
    if (stored := run.folder / TILTED).is_file():
        found["tilted model"] = _of(ClassTable.from_frame(pd.read_parquet(stored)))
    return found


def _of(table: ClassTable) -> Source:
    sure, tops = table.by_count, [own[0] for own in table.classes]
    return Source(sure.plug_in, sure.correct, table.groups.tolist(), table.questions, tops)


def single_errors(run: Run, found: Mapping[str, Source]) -> dict[str, float]:
    """Confidence -> how far it is from the true chance of its answer, as root mean square over questions; empty where
    that chance is not known, as it is of the organism's questions (`World.truth`), or the answers are not, as in a run
    kept without texts."""
    dataset = stored_cell(run).dataset
    if not isinstance(dataset, AtlasConfig) or run.manifest().get(WITHOUT_TEXTS):
        return {}
    world = world_of(dataset.family, dataset.world_seed)
    errors = {}
    for name, own in found.items():
        asked = zip(own.questions, own.answers, strict=True)
        true = [world.truth(query_of(question)).get(answer, 0.0) for question, answer in asked]
        errors[name] = float(np.sqrt(np.mean((own.confidence - np.array(true)) ** 2)))
    return errors


def gates(found: Mapping[str, Source], risks: Sequence[float], *, delta: float, guarantee: Guarantee) -> list[Row]:
    """One row per confidence and risk.

    Raises:
        UserError: no risk can be shown on so few groups, even if every answer were right.
    """
    rows = []
    for name, own in found.items():
        for risk in risks:
            try:
                one = gate(own.confidence, own.correct, own.group, risk=risk, delta=delta, guarantee=guarantee)
                never = np.isinf(one.threshold) and guarantee == "of the answers"
                rows.append(Row(name, risk, guarantee, one, _too_few(name, own, risk, delta) if never else ""))
            except UserError as error:
                rows.append(Row(name, risk, guarantee, None, str(error)))
    if all(row.found is None for row in rows):
        raise UserError(rows[-1].reason)
    return rows


def _too_few(name: str, own: Source, risk: float, delta: float) -> str:
    """Why a threshold was not found, where no order of the questions could have led to one; otherwise empty."""
    groups = np.unique(own.group, return_inverse=True, return_counts=True)[1:]
    right, needed = float((own.correct / groups[1][groups[0]]).sum()), fewest_groups(risk, delta)
    if right >= needed:
        return ""
    return (
        f"{name} is right on {right:.0f} groups of questions, and a risk of {risk:g} of the answers takes {needed}: "
        "ask more questions, allow a larger risk, or bound the share of the questions"
    )


def write_gates(
    run: Run, rows: Sequence[Row], curve: Sequence[Row], errors: Mapping[str, float], width: float | None
) -> list[Path]:
    """Write FILES to looks/ of a run; returns their paths.

    Args:
        rows: of the risks that were asked for.
        curve: of those and of risks between, for the lines of the figure, all of one guarantee.
        errors: of `single_errors`.
        width: of the figure, inches; None for its own.
    """
    table = as_frame(curve, errors).fillna({"coverage": 0.0})
    figure = gate_curve(
        table.assign(marked=table["risk"].isin([row.risk for row in rows])),
        wrong=1 - float(run.class_table().by_count.correct.mean()),
        guarantee=curve[0].guarantee,
        title=run.name.replace("__", " · "),
        width=width,
    )
    folder = run.folder / LOOKS / "gates"
    folder.parent.mkdir(exist_ok=True)
    with replacing(folder) as staged:
        write_atomically(staged / "gates.csv", lambda path: as_frame(rows, errors).to_csv(path, index=False))
        save_figures({"gates": figure}, staged)
    return [folder / name for name in FILES]


def between(risks: Sequence[float]) -> list[float]:
    """These risks and thirty around them."""
    top = min(1.5 * max(risks), 0.99)
    return sorted({*risks, *np.linspace(top / 30, top, 30).tolist()})


def gates_table(rows: Sequence[Row]) -> FittedTable:
    """One row per confidence and risk."""
    table = FittedTable(("confidence", "risk", "answer where ≥", "answered", "of these wrong"))
    for row in rows:
        if row.found is None:
            figures = ("too few groups", "", "")
        elif np.isinf(row.found.threshold):
            figures = ("never", "0.0 %", "")
        else:
            wrong = "" if np.isnan(row.found.wrong) else f"{row.found.wrong:.1%}".replace("%", " %")
            figures = (f"{row.found.threshold:.2f}", f"{row.found.coverage:.1%}".replace("%", " %"), wrong)
        table.add_row(row.source, f"{100 * row.risk:g} %", *figures)
    return table


def explanation(rows: Sequence[Row], errors: Mapping[str, float], delta: float, guarantee: Guarantee) -> str:
    """What is guaranteed, printed below the table, and how far off each confidence is on a single question."""
    if guarantee == "of the answers":
        said = (
            f"guarantee: with probability {1 - delta:g} over the questions calibrated on, at most the risk of the "
            "answers given to questions of groups to come is wrong"
        )
    else:
        said = (
            "guarantee: the expected share of questions to come that are answered wrongly, of all questions, is at "
            "most the risk (conformal risk control, arXiv 2208.02814)"
        )
    said += (
        "; it holds for any confidence, calibrated or not, as long as groups to come are drawn like these: it says "
        "nothing of other questions, and each group counts once, however many questions it has · answered, wrong: of "
        "the questions calibrated on, each of which counts once"
    )
    if {row.source for row in rows} - {SAMPLED}:
        said += (
            " · the class probe and the tilted model answer each question by a predictor fitted on the others, so for "
            "them the guarantee is approximate"
        )
    if errors:
        each = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
        said += f" · of a single question, confidence minus the true chance of its answer, root mean square: {each}"
    reasons = dict.fromkeys(row.reason for row in rows if row.reason)
    return " · ".join([said, *reasons])


def as_frame(rows: Sequence[Row], errors: Mapping[str, float]) -> pd.DataFrame:
    """One row per confidence and risk; single_error: that of its confidence by `single_errors`, NaN where not known."""
    named = ({"source": r.source, "risk": r.risk, "guarantee": r.guarantee} for r in rows)
    found = pd.DataFrame([one | (asdict(r.found) if r.found else {}) for one, r in zip(named, rows, strict=True)])
    return found.assign(single_error=[errors.get(row.source, np.nan) for row in rows])
