"""What stands behind the headline figures, as tables with a sentence each."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from semcal.runs.run import Run


def sections(run: Run) -> list[tuple[str, str, pd.DataFrame]]:
    """(title, what it says, table) of each section of calibration.json that this run has."""
    c = run.calibration()
    found = [
        (
            "Finite M",
            "B-confidence in every way: the most frequent class's share (plug-in) overstates it; halves (mode from "
            "one, share in the other) are unbiased about the answer that half of the samples choose; masses come from "
            "log-probabilities, and the limit from the M-curve.",
            _frame(c.get("finite_m")),
        ),
        (
            "M-curve",
            "Random parts of the samples, and the limit with its intervals.",
            _frame([row | {"m": str(row["m"] or "∞")} for row in c.get("m_curve") or []]),
        ),
        (
            "Calibrated within",
            "The equivalence test: the smallest calibration error that can be ruled out, and whether delta is.",
            _frame(_one(c.get("equivalence"))),
        ),
        (
            "Loss gap",
            "Log loss (nats a question) that the best tilt of the top class would recover, on questions held out; 0 "
            "where the model is locally loss-optimal.",
            _frame(_one(c.get("loss_gap"))),
        ),
        (
            "Remedies",
            "The confidence recalibrated by each method, on questions held out.",
            _frame(c.get("remedies")),
        ),
        (
            "Beyond the top class",
            "All classes at once: the kernel calibration error of the whole distribution (SKCE, 0 in the mean for a "
            "calibrated model), and smECE class by class.",
            _frame(_one(c.get("closed"))),
        ),
        (
            "Profile",
            "The same samples under other collapsing functions: what the model is calibrated about.",
            _frame(c.get("profile")),
        ),
    ]
    found.append(
        (
            "Probe confidence",
            "The confidence that linear probes read before the first token, at the price of one forward pass, beside "
            "that of the samples. AUROC: how well it tells right from wrong answers of the model. Read smECE beside "
            "accuracy.",
            _frame(run.probe_confidence().to_dict("records")),
        )
    )
    return [(title, words, frame) for title, words, frame in found if not frame.empty]


def _one(section: dict[str, Any] | None) -> list[dict[str, Any]]:
    if section is None:
        return []
    return [{k: v for k, v in section.items() if not isinstance(v, dict)}]


def _frame(rows: list[dict[str, Any]] | None) -> pd.DataFrame:
    """Rows as a table, underscores as blanks, and the ends of an interval beside what they are of."""
    frame = pd.DataFrame(rows or []).rename(columns=lambda name: str(name).replace("_", " "))
    for name in list(frame):
        if (ends := [f"{name} low", f"{name} high"]) and set(ends) <= set(frame):
            frame[name] = [_with_interval(*row) for row in frame[[name, *ends]].to_numpy(float).tolist()]
            frame = frame.drop(columns=ends)
    return frame


def _with_interval(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "—"
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
