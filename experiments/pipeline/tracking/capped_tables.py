"""Tables of questions and samples for W&B, no longer than W&B shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from semcal.runs.run import Run

MOST_ROWS = 10_000  # W&B shows no more


@dataclass(frozen=True)
class Capped:
    """The first rows of a table, and how many were left out."""

    rows: pd.DataFrame
    left_out: int

    @classmethod
    def of(cls, table: pd.DataFrame) -> Capped:
        rows = table.iloc[:MOST_ROWS].reset_index(drop=True)
        return cls(rows, len(table) - len(rows))


def question_table(run: Run) -> Capped:
    """A row a question, as `Run.table`, with its prompt."""
    table = run.table()
    prompts = run.questions().set_index("id")["prompt"]
    return Capped.of(table.assign(prompt=prompts.loc[table["question_id"]].to_numpy()))


def sample_table(run: Run) -> Capped:
    """A row a distinct answer; where there are too many, the most frequent of every question come first."""
    samples = run.samples().drop(columns="token_ids")
    if len(samples) > MOST_ROWS:
        weight = samples["count"].astype(float).fillna(samples["logprob"])
        rank = weight.groupby(samples["question_id"]).rank(method="first", ascending=False)
        samples = samples.iloc[np.argsort(rank.to_numpy(), kind="stable")]
    return Capped.of(samples.astype({"count": float}))
