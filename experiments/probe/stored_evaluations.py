"""What `semcal probe` found of two runs, compared on the questions that both were probed on."""

from __future__ import annotations

from collections.abc import Sequence

from probes.evaluation.contrast import explained_differences
from probes.evaluation.result import BASELINE, LINEAR, Evaluation, at_layer
from semcal.calibration.inference.paired import Difference
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.runs.run import Run


def stored_evaluation(run: Run, position: str, ids: Sequence[str]) -> Evaluation:
    """What `semcal probe` found of the class distribution at a position, on some of the questions probed there."""
    losses, table = run.probe_losses(), run.probes()
    losses = losses.loc[losses["position"] == position, :]
    frame = table.loc[(table["target"] == "classes") & (table["position"] == position) & (table["layer"] != ""), :]
    wide = losses.pivot(index=["rung", "layer"], columns="question_id", values="probe_nats")
    baseline = losses.drop_duplicates("question_id").set_index("question_id")["baseline_nats"]
    rows = wide.loc[list(zip(frame["rung"], frame["layer"], strict=True)), list(ids)]
    return Evaluation(frame.reset_index(drop=True), rows.to_numpy(float), baseline.loc[list(ids)].to_numpy(float))


def compare_last_layers(a: Run, b: Run, position: str, *, resampling: Resampling) -> tuple[dict[str, Difference], str]:
    """Rung -> how much better the class distribution can be predicted in the second of two runs, as shares of their
    ceilings, each run at its own last layer, without baselines; and remarks on it.

    On the questions that both were probed on; give runs of equal M.

    Raises:
        UserError: a run that was not probed at the position, no common question, or no rung in common.
    """
    one, two, group = _paired(a, b, position)
    layers, sizes = [_last_layer(e) for e in (one, two)], [int(e.frame["n"].iloc[0]) for e in (one, two)]
    remarks = [] if layers[0] == layers[1] else [f"at the last layers {' and '.join(layers)}"]
    if sizes[0] != sizes[1]:
        remarks.append(f"probes learnt from {sizes[0]} and {sizes[1]} questions")
    last = [_only(e, layer) for e, layer in zip((one, two), layers, strict=True)]
    try:
        found = explained_differences(*last, group=group, resampling=resampling)
    except ValueError:
        raise UserError(f"{a.folder} and {b.folder} share no rung at their last layers; `semcal probe` both") from None
    return {rung: d for (rung, *_), d in found.items()}, "; ".join(remarks)


def _last_layer(e: Evaluation) -> str:
    """The last layer that linear probes read; none without them."""
    lines = e.frame.loc[e.frame["rung"] == LINEAR, "layer"].tolist()
    return lines[-1] if lines else "none"


def _only(e: Evaluation, layer: str) -> Evaluation:
    """Rungs at one layer, whatever its name; no baselines."""
    probes = e.frame.loc[~e.frame["rung"].str.startswith(BASELINE), :]
    rows = at_layer(probes, layer).index.to_numpy()
    return Evaluation(e.frame.loc[rows, :].assign(layer="last"), e.losses[rows], e.baseline)


def _paired(a: Run, b: Run, position: str) -> tuple[Evaluation, Evaluation, list[str]]:
    """What was found of two runs on the questions that both were probed on, and their groups.

    Raises:
        UserError: see `compare_last_layers`.
    """
    probed = []
    for run in (a, b):
        losses = run.probe_losses()
        if losses.empty or position not in set(losses["position"]):
            raise UserError(f"{run.folder} holds no probes of the class distribution at {position}; `semcal probe` it")
        probed.append(set(losses.loc[losses["position"] == position, "question_id"]))
    table = a.questions()
    common = table.loc[table["id"].isin(probed[0] & probed[1]), :]
    if common.empty:
        raise UserError(f"{a.folder} and {b.folder} were not probed on a common question; give them the same dataset")
    one, two = (stored_evaluation(run, position, list(common["id"])) for run in (a, b))
    return one, two, list(common["group"])
