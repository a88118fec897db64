"""Activations that another tool captured are read by question id, whatever the order, the dtype and the format."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from probes.activations.foreign import ForeignActivations
from semcal import UserError

IDS = ("q1", "q2", "q3", "q4")
NAMES = ("blocks.10", "blocks.2", "blocks.0")


def values(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Layer -> [question, d], of small integers, exact in every dtype; rows belong to q4, q2, q1."""
    return {n: (torch.arange(6).reshape(3, 2) + 10 * i).to(dtype) for i, n in enumerate(NAMES)}


def safetensors(folder: Path, layers: dict[str, torch.Tensor], ids: object = ("q4", "q2", "q1")) -> Path:
    save_file(layers, folder / "a.safetensors", metadata={"question_ids": json.dumps(ids)} if ids else None)
    return folder / "a.safetensors"


def parquet(folder: Path, layers: dict[str, torch.Tensor], ids: object = ("q4", "q2", "q1")) -> Path:
    columns = {"question_id": list(ids)} if ids else {}  # type: ignore[call-overload]
    pd.DataFrame(columns | {n: [row.tolist() for row in v] for n, v in layers.items()}).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("write", [safetensors, parquet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_rows_come_in_the_order_of_the_run_and_layers_by_their_numbers(tmp_path, write, dtype):
    found = ForeignActivations.open(write(tmp_path, values(dtype)), IDS, position="last_prompt_token")
    assert found.layers == ("blocks.0", "blocks.2", "blocks.10")
    assert found.present.tolist() == [True, True, False, True]
    assert found.width == (2,)
    layer = found.layer("blocks.2")
    assert layer.dtype == np.float32
    assert layer.tolist() == [[14, 15], [12, 13], [10, 11]]  # q1, q2, q4


@pytest.mark.parametrize(
    ("write", "layers", "ids", "says"),
    [
        (safetensors, values(), None, "has no question ids; add question_ids to its metadata"),
        (parquet, values(), None, "has no question ids; add a column question_id"),
        (safetensors, values(), {"q1": 0}, "is no JSON list"),
        (safetensors, values(), ("q1", "q1", "q2"), "'q1' is there twice"),
        (parquet, values(), ("q1", "q2", "q9"), "the run has no question 'q9'"),
        (safetensors, values(), ("q1", "q2"), "is \\[3, 2\\], but there are 2 question ids"),
        (safetensors, values() | {"blocks.3": torch.zeros(3, 5)}, ("q1", "q2", "q3"), "give layers of one width"),
        (safetensors, {}, ("q1", "q2"), "holds no layer"),
        (safetensors, {"a": torch.zeros(3, 2, 2)}, ("q1", "q2", "q3"), "expected \\[3, d\\]"),
        (safetensors, {"a": torch.zeros(3, 0)}, ("q1", "q2", "q3"), "a holds no numbers; store"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_in_one_line(tmp_path, write, layers, ids, says):
    with pytest.raises(UserError, match=says) as refused:
        ForeignActivations.open(write(tmp_path, layers, ids), IDS, position="last_prompt_token")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_cut_short_or_of_another_kind_is_refused(tmp_path):
    cut = safetensors(tmp_path, values())
    cut.write_bytes(cut.read_bytes()[:-8])
    for path, says in (
        (tmp_path / "nowhere.parquet", "is no file"),
        (cut, "cannot be read as activations"),
        (Path(__file__), "cannot be read as activations"),
    ):
        with pytest.raises(UserError, match=says):
            ForeignActivations.open(path, IDS, position="last_prompt_token")
    (tmp_path / "text.parquet").write_text("question_id\nq1\n")
    with pytest.raises(UserError, match="cannot be read as activations"):
        ForeignActivations.open(tmp_path / "text.parquet", IDS, position="last_prompt_token")
    pd.DataFrame({"question_id": ["q1", "q2"], "norm": [0.5, 1.0]}).to_parquet(tmp_path / "flat.parquet")
    with pytest.raises(UserError, match="column norm holds double; expected question_id, and for each layer"):
        ForeignActivations.open(tmp_path / "flat.parquet", IDS, position="last_prompt_token")


def test_a_number_that_is_not_finite_is_named_with_layer_and_question(tmp_path):
    layers = values()
    layers["blocks.2"][1, 0] = torch.nan
    found = ForeignActivations.open(safetensors(tmp_path, layers), IDS, position="last_prompt_token")
    assert np.isfinite(found.layer("blocks.0")).all()
    with pytest.raises(UserError, match=r"blocks\.2 holds NaN or infinity at question 'q2'"):
        found.layer("blocks.2")


def in_parquet(folder: Path, column: list | pa.Array, ids: list[str]) -> Path:
    pq.write_table(pa.table({"question_id": pa.array(ids, pa.string()), "x": column}), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([], pa.list_(pa.float32())), "holds no question; store a row"),
        ([["a", "b"], ["c", "d"]], "column x holds list<.*string>; expected question_id, and for each layer"),
        ([[], []], "column x holds list<.*null>; expected"),
        (pa.array([[], []], pa.list_(pa.float32())), "x holds no numbers; store"),
        (pa.array([None, None], pa.list_(pa.float32())), "x holds no numbers; store"),
    ],
)
def test_columns_that_hold_no_numbers_are_refused_in_one_line(tmp_path, column, says):
    with pytest.raises(UserError, match=says) as refused:
        ForeignActivations.open(in_parquet(tmp_path, column, ["q1", "q2"][: len(column)]), IDS, position="x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_without_a_list_is_named(tmp_path, row):
    column = [[1.0, 2.0], [1.0, 2.0]]
    column[row] = None
    found = ForeignActivations.open(in_parquet(tmp_path, column, ["q1", "q2"]), IDS, position="x")
    with pytest.raises(UserError, match=f"x has no list in row {row + 1}; capture it again"):
        found.layer("x")


def test_numbers_of_rows_that_pandas_keeps_are_no_layer(tmp_path):
    frame = pd.DataFrame({"question_id": IDS, "x": [[1.0], [2.0], [3.0], [4.0]]})
    frame[frame["question_id"] != "q3"].to_parquet(tmp_path / "a.parquet")
    assert "__index_level_0__" in pq.ParquetFile(tmp_path / "a.parquet").schema_arrow.names
    found = ForeignActivations.open(tmp_path / "a.parquet", IDS, position="x")
    assert found.layers == ("x",)
    assert found.layer("x").tolist() == [[1], [2], [4]]


def test_lists_of_different_lengths_are_refused(tmp_path):
    pd.DataFrame({"question_id": ["q1", "q2"], "x": [[1.0, 2.0], [1.0]]}).to_parquet(tmp_path / "a.parquet")
    found = ForeignActivations.open(tmp_path / "a.parquet", IDS, position="last_prompt_token")
    with pytest.raises(UserError, match="between 1 and 2 numbers"):
        found.layer("x")


def test_a_layer_that_is_not_there_is_refused_naming_the_nearest(tmp_path):
    found = ForeignActivations.open(safetensors(tmp_path, values()), IDS, position="last_prompt_token")
    with pytest.raises(UserError, match=r"no layer 'blocks\.1', did you mean"):
        found.layer("blocks.1")
