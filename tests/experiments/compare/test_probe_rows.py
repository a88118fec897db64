"""The KL gap of a run in tables: which probe stands for it, and what is said about it."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from experiments.compare.probe_rows import bounds, last_layer, layer_rows, probe_remarks, probe_table, whole_model
from experiments.report.summary_table import BETWEEN, LORA, cells_of, legend
from probes.evaluation.result import COLUMNS

NAN = float("nan")


class Stored:
    """A run of which only the table of probes matters."""

    def __init__(self, *rows: dict, columns: tuple[str, ...] = ()) -> None:
        base = {
            "target": "classes",
            "position": "last_prompt_token",
            "layer": "blocks.1.hook_resid_post",
            "pooled": 0.0,
        }
        base |= {"gap_at_least": 0.45, "gap_at_most": 0.55, "gap_low": 0.3, "gap_high": 0.7, "gap": 0.5}
        frame = pd.DataFrame([base | row for row in rows])
        self.frame = frame[list(columns)] if columns else frame.reindex(columns=[*COLUMNS, "position"])

    def probes(self) -> pd.DataFrame:
        return self.frame

    def calibration(self) -> dict:
        return {"m": 50}

    def config(self) -> dict:
        return {}


def test_the_last_layer_and_the_whole_model_stand_for_a_run_whatever_the_order() -> None:
    run = Stored(
        {"rung": "linear", "target": "b_confidence", "gap": NAN},
        {"rung": "bilinear", "layer": "blocks.0.hook_resid_post", "gap": 0.1},
        {"rung": "bilinear", "gap": 0.7},
        {"rung": "bilinear", "gap": 0.2, "position": "chain_50"},
        {"rung": "lora", "layer": "whole model", "gap": 0.4},
        {"rung": "generative", "layer": "whole model", "gap": 0.6},
        {"rung": "lens", "gap": 3.0},
        {"rung": "baseline:tfidf", "layer": "tf-idf and length", "gap": 0.05},
    )
    layer, whole = last_layer(run.probes(), "classes"), whole_model(run.probes(), "classes")
    assert layer is not None
    assert whole is not None
    assert (layer["rung"], layer["gap"]) == ("bilinear", 0.7)  # not the best one
    assert (whole["rung"], whole["gap"]) == ("generative", 0.6)
    assert last_layer(run.probes().iloc[:0], "classes") is None
    assert whole_model(Stored({"rung": "linear"}).probes(), "classes") is None


def test_of_closed_classes_the_linear_rung_stands_for_the_run_though_the_bilinear_one_was_fitted_too() -> None:
    first = "blocks.0.hook_resid_post"
    own = [{"rung": "linear", "layer": first, "gap": 0.9}, {"rung": "linear", "gap": 0.4}]
    beside = [{"rung": "bilinear", "layer": first, "gap": 0.8}, {"rung": "bilinear", "gap": 0.3}]
    table = Stored(*own, *beside, {"rung": "bilinear", "target": "other", "gap": 0.2}).probes()
    row = last_layer(table, "classes")
    assert row is not None
    assert (row["rung"], row["gap"]) == ("linear", 0.4)
    lines = layer_rows(table)  # what figures draw as one line
    assert lines.loc[lines["target"] == "classes", "gap"].tolist() == [0.9, 0.4]
    assert lines.loc[lines["target"] == "other", "rung"].tolist() == ["bilinear"]


@pytest.mark.parametrize(
    ("row", "between"),
    [
        ({"gap_at_least": 0.1, "gap_at_most": 0.9}, "between 0.100 and 0.900 nats"),
        ({"gap_at_least": -0.4, "gap_at_most": 0.9}, "between 0.000 and 0.900 nats"),
        ({"gap_at_least": NAN, "gap_at_most": 0.9}, "between 0.000 and 0.900 nats"),
        ({"gap_at_least": 0.4, "gap_at_most": 0.6}, ""),  # the interval is wider
        ({"gap": NAN, "gap_low": NAN, "gap_high": NAN, "gap_at_least": NAN, "gap_at_most": NAN}, ""),
    ],
)
def test_the_bracket_is_said_where_it_is_wider_than_the_interval(row: dict, between: str) -> None:
    said = probe_remarks(Stored({"rung": "linear"} | row))  # pyright: ignore[reportArgumentType]
    assert len(said) == bool(between)
    assert all(between in line and "M = 50 samples" in line for line in said)
    assert all(("without log-probabilities" in line) == math.isnan(row["gap_at_least"]) for line in said)


@pytest.mark.parametrize(("pooled", "said"), [(0.0, 0), (0.05, 0), (0.06, 1), (0.86, 1), (NAN, 0)])
def test_much_pooled_mass_is_said(pooled: float, said: int) -> None:
    remarks = probe_remarks(Stored({"rung": "linear", "pooled": pooled}))  # pyright: ignore[reportArgumentType]
    assert len(remarks) == said
    assert all(f"{pooled:.0%} of the mass is in the pooled class" in line for line in remarks)


def test_probes_of_an_earlier_version_have_no_gap_and_one_remark() -> None:
    old = Stored({"rung": "linear", "explained": 0.8}, columns=("rung", "target", "position", "layer", "explained"))
    (said,) = probe_remarks(old)  # pyright: ignore[reportArgumentType]
    assert "`semcal probe RUN` computes it" in said
    table = probe_table(old)  # pyright: ignore[reportArgumentType]
    row = last_layer(table, "classes")
    assert row is not None
    assert row["explained"] == 0.8
    assert math.isnan(row["gap"])


def test_a_gap_is_at_least_nothing() -> None:
    assert bounds({"gap_at_least": -0.2, "gap_at_most": -0.01}) == (0.0, 0.0)


def test_the_legend_tells_of_lora_only_where_there_is_a_column() -> None:
    assert "LoRA" not in legend(["run", "KL gap"])
    assert "LoRA" in legend(["run", "KL gap", LORA])
    assert "null" not in legend(["run"], short=True)


def test_the_summary_has_the_bracket_where_most_samples_are_of_classes_drawn_once() -> None:
    few, many = (Stored({"rung": "bilinear", "drawn_once": share}) for share in (0.4, 0.6))
    assert cells_of(many)["kl_between"] == "0.450 to 0.550"  # pyright: ignore[reportArgumentType]
    assert "kl_between" not in cells_of(few)  # pyright: ignore[reportArgumentType]
    assert "kl_between" not in cells_of(Stored({"rung": "linear"}))  # pyright: ignore[reportArgumentType]
    assert "between" in legend(["run", "KL gap", BETWEEN])
    assert "between" not in legend(["run", "KL gap"])


def test_a_universe_of_which_nothing_is_known_is_said() -> None:
    untold, told = ({"rung": "bilinear", "universe": size, "gap_low": -9.0} for size in (math.inf, 1e4))
    (said,) = probe_remarks(Stored(untold))  # pyright: ignore[reportArgumentType]
    assert "may be far too low; ask more questions" in said
    assert not probe_remarks(Stored(told))  # pyright: ignore[reportArgumentType]
    assert not probe_remarks(Stored({"rung": "linear", "gap_low": -9.0}))  # pyright: ignore[reportArgumentType]
