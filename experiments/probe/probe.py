"""Probes of a cell's activations. Only probes that read the model itself load it."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from experiments.probe.at_position import Asked, fit_position, losses_of, table_of
from experiments.probe.confidence_rows import probe_confidence
from experiments.probe.with_model import ModelProbes
from experiments.sample.models import Models
from probes.evaluation.layerwise import COLUMNS
from semcal.errors import UserError
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run

log = logging.getLogger(__name__)


def probe(cell: Cell, run: Run, models: Models | None = None) -> None:
    """Fit probes on the captured activations to the classes that `score` found; writes probes.parquet and, of each
    question, probe_losses.parquet.

    A position is probed on the questions that have it, if they make enough groups. At the last prompt token the probe's
    confidence is measured, too (`probe_confidence`), and rungs and baselines that read the run's model are fitted:
    `models` are asked for it, if there is one of them.

    Raises:
        UserError: fewer groups of questions than folds; what `ModelProbes` or `fit_position` refuse.
    """
    if (groups := len(set(run.questions()["group"]))) < cell.probes.folds:
        raise UserError(
            f"{run.folder}: {groups} groups of questions cannot be split into {cell.probes.folds} folds; lower "
            "probes.folds, ask more, or set probes.enabled to false"
        )
    with_model = ModelProbes.of(cell, run, models or Models())
    tables, losses = [pd.DataFrame(columns=[*COLUMNS, "position"])], [pd.DataFrame()]
    for position in cell.capture.positions:
        there = np.flatnonzero(run.activations(position, run.activation_layers(position)[:1]).present)
        asked = Asked.of(run, there)
        if (groups := len(set(asked.group))) < cell.probes.folds:
            log.warning(
                "%s: questions of only %d groups have the position %s, too few for %d folds; not probed there (lower "
                "probes.folds, or ask more)", cell.label, groups, position, cell.probes.folds,
            )  # fmt: skip
            continue
        found = fit_position(cell, run, position, asked)
        if position == LAST_PROMPT_TOKEN and with_model is not None:
            found += with_model.fit(asked)
        if found:
            tables.append(table_of(found, position, with_marginal="marginal" in cell.probes.baselines))
            losses.append(losses_of(found, position, list(asked.table["id"])))
    run.write_probe_losses(pd.concat(losses, ignore_index=True))
    if LAST_PROMPT_TOKEN in cell.capture.positions:
        probe_confidence(cell, run)
    # Last: where this file stands, a run counts as probed.
    run.write_probes(pd.concat(tables[1:] or tables, ignore_index=True))
