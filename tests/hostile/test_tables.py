"""Tables as pandas, spreadsheets and hand-written JSON leave them: the right questions, or one line with the place."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semcal import Question, UserError, load_dataset
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.exact_match import ExactMatch

held = pytest.mark.held_before
GOOD = {"id": "a", "question": "Who?", "answers": ["Ada"]}
HEADER = "id,question,answers\n"


def lines(*records, good=True):
    """JSON Lines as Python writes them, NaN and all, after a good line."""
    return "".join(json.dumps(r) + "\n" for r in ((GOOD,) if good else ()) + records)


def second(**fields):
    return lines({"id": "b", "question": "When?", "answers": ["1931"]} | fields)


def raw(fields):
    """The good line, then one that is written by hand."""
    return lines() + '{"id": "b", "question": "When?", ' + fields + "}\n"


def read(path):
    return {q.id: q for q in load_dataset(path).questions}


# ---- read right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "answers"),
    [
        ("t.jsonl", second(answers=[1931.0]), ("1931",)),
        ("t.jsonl", second(answers=[float("nan"), "1931", None]), ("1931",)),
        ("t.jsonl", second(answers=[-0.0]), ("0",)),
        ("t.jsonl", second(answers=[1e-7]), ("0.0000001",)),
        ("t.jsonl", second(answers=["\u200b", "1931"]), ("1931",)),
        ("t.jsonl", second(group=None, choices=None, others=None, worked=None), ("1931",)),
        ("t.jsonl", second(group=float("nan"), others=[None, "x"]), ("1931",)),
        ("t.json", json.dumps([GOOD, {"id": "b", "question": "Q", "answers": [2.0, 0.1]}]), ("2", "0.1")),
        ("t.csv", f"{HEADER}a,Who?,1930.0\nb,When?,1931.0\n", ("1931",)),
        ("t.csv", f'{HEADER}a,Who?,Ada\nb,When?,"[1931.0, NaN]"\n', ("1931",)),
        pytest.param("t.jsonl", second(answers=[1931]), ("1931",), marks=held),
        pytest.param("t.jsonl", second(answers=[0.1]), ("0.1",), marks=held),
        pytest.param("t.jsonl", second(answers=[10**21]), ("1" + 21 * "0",), marks=held),
        pytest.param("t.jsonl", second(answers=["", "1931", " "]), ("1931",), marks=held),
        pytest.param("t.jsonl", second(answers=["nan"]), ("nan",), marks=held),
        pytest.param("t.jsonl", second(answers=["1931.0"]), ("1931.0",), marks=held),
        pytest.param("t.jsonl", second(answers=["The"]), ("The",), marks=held),
        ("t.jsonl", second(answers="1931"), ("1931",)),
        ("t.jsonl", second(answers=1931), ("1931",)),
        ("t.csv", "id;question;answers\na;Who?;x\nb;When?;1931\n", ("1931",)),
        ("t.csv", " ID,Question ,Answer\na,Who?,x\nb,When?,1931\n", ("1931",)),
        ("t.csv", "id,question,answer,,\n,,,,\na,Who?,x,,\nb,When?,1931,,\n,,,,\n", ("1931",)),
        pytest.param("t.jsonl", "\ufeff" + second(), ("1931",), marks=held),
        pytest.param("t.csv", f"{HEADER}a,Which Python?,3.10\nb,Which?,3.0\n", ("3.0",), marks=held),
        pytest.param("t.csv", f"{HEADER}a,Who?,Ada\nb,Which Web?,2.0\n", ("2.0",), marks=held),
    ],
)
def test_cells_are_read_as_they_were_meant(tmp_path, name, text, answers):
    (tmp_path / name).write_text(text, encoding="utf-8")
    questions = read(tmp_path / name)
    assert questions["b"].answers == answers
    assert questions["b"].group == "b"


@pytest.mark.parametrize(
    ("column", "answer"),
    [
        (pa.array([[1931.0]], pa.list_(pa.float64())), "1931"),
        (pa.array([[0.1]], pa.list_(pa.float32())), "0.1"),
        (pa.array([[0.1]], pa.list_(pa.float16())), "0.1"),
        (pa.array([[2.0, None]], pa.list_(pa.float32())), "2"),
        (pa.array([[decimal.Decimal("1.50")]], pa.list_(pa.decimal128(5, 2))), "1.5"),
        pytest.param(pa.array([[1931]], pa.list_(pa.int16())), "1931", marks=held),
    ],
)
def test_numbers_of_parquet_are_their_shortest_decimals(tmp_path, column, answer):
    pq.write_table(pa.table({"id": ["b"], "question": ["When?"], "answers": column}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")["b"].answers == (answer,)


def test_a_number_that_pandas_made_a_float_is_the_class_that_a_model_writes(tmp_path):
    frame = pd.DataFrame(
        {"id": ["a", "b"], "question": ["Born?", "Died?"], "year": [1931, 1999], "other": [None, 1998]}
    )
    frame["answers"] = frame[["year", "other"]].to_numpy().tolist()  # the column with a gap is float, and so are both
    frame[["id", "question", "answers"]].to_parquet(tmp_path / "t.parquet")
    questions = read(tmp_path / "t.parquet")
    found = collapse_blind(ExactMatch(), [questions["a"], questions["b"]], [["1931"], ["1998"]], "concise")
    assert [f.classes[0] in f.gold for f in found] == [True, True]
    assert found[0].gold == {"1931"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(np.float64(1931), "1931"), (np.float32(0.1), "0.1"), (np.int8(5), "5"), (decimal.Decimal("1E+3"), "1000")],
)
def test_a_question_made_of_a_frames_values_is_the_same(value, text):
    missing = (None, np.nan, np.float32("nan"), pd.NA, pd.NaT, decimal.Decimal("NaN"), "")
    answers: Any = (value, *missing)
    assert Question(id="q", text="Q", answers=answers).answers == (text,)


# ---- refused with the place ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", second(answers=[float("nan")]), r":2: question 'b' has no gold answer; give at least one"),
        ("t.jsonl", second(answers=["\u200b"]), ":2: question 'b' has no gold answer"),
        ("t.jsonl", second(answers=float("nan")), ":2: column 'answers' is empty"),
        ("t.jsonl", second(answers=[float("inf")]), ":2: column 'answers' must be text, got the number inf"),
        ("t.jsonl", second(answers=[1e21]), ":2: column 'answers' holds the float 1e.21, whose last digits"),
        ("t.jsonl", second(question=float("nan")), ":2: column 'question' is empty"),
        ("t.jsonl", second(id=""), ":2: the id is empty; give every question an id of its own"),
        ("t.jsonl", second(id=" "), ":2: the id is empty"),
        ("t.jsonl", second(id=None), ":2: the id is empty"),
        ("t.jsonl", second(id=float("nan")), ":2: the id is empty"),
        ("t.csv", f"{HEADER}a,Who?,Ada\n,When?,1931\n", ": row 2: the id is empty"),
        ("t.jsonl", second(id="a"), r":2: two questions have the id 'a', this one and that of .*t\.jsonl:1;"),
        ("t.jsonl", lines({**GOOD, "id": 1}, {**GOOD, "id": "1", "question": "Q"}, good=False), ":2: two questions"),
        ("t.jsonl", lines({**GOOD, "id": 1}, {**GOOD, "id": 1.0, "question": "Q"}, good=False), ":2: two questions"),
        ("t.jsonl", second(id="a "), r":2: id 'a ' looks like 'a' of .*t\.jsonl:1; give each an id of its own"),
        ("t.jsonl", lines({**GOOD, "id": "é"}, {**GOOD, "id": "e\u0301"}, good=False), ":2: id .* looks like"),
        ("t.csv", "id,question,answers,answers\na,Who?,Ada,Bo\n", ":1: two columns are named 'answers'; rename or"),
        ("t.tsv", "id\tid\tquestion\tanswers\na\tb\tWho?\tAda\n", ":1: two columns are named 'id'"),
        ("t.csv", "Question,answer,answers\nWho?,x,y\n", "row 1: columns 'answer' and 'answers' mean the same; rename"),
        ("t.jsonl", second(Answers=["x"]), ":2: columns 'answers' and 'Answers' mean the same"),
        ("t.csv", "question,answer\n,\n , \n", " has no rows with anything in them"),
        ("t.csv", "question,answer,\nWho?,x,y\n", ": row 1: a column has no name; remove it"),
        ("t.csv", ",id,question,answers\n0,a,Who?,Ada\n", ": row 1: a column has no name; remove it"),
        ("t.jsonl", raw('"answers": ["1"], "answers": ["2"]'), ":2: the key 'answers' occurs twice in one object"),
        ("t.jsonl", raw('"answers": ["1"], "worked": {"cot": "x", "cot": "y"}'), ":2: the key 'cot' occurs twice"),
        ("t.json", f'[{json.dumps(GOOD)}, {{"id": "b", "id": "c"}}]', ": entry 2: the key 'id' occurs twice"),
        ("t.json", '{"Data": [{"id": "a"}], "Data": [{"id": "b"}]}', "t.json: the key 'Data' occurs twice"),
        (
            "t.csv",
            'id,question,answers,worked\na,Q,x,"{""cot"": ""y"", ""cot"": ""z""}"\n',
            ": row 1: column 'worked': the key 'cot' occurs twice",
        ),
        ("t.jsonl", second(answers=["['Ada', 'Bo']"]), ":2: column 'answers' holds a list as one text"),
        ("t.csv", f"{HEADER}a,Q,\"('Ada', 'Bo')\"\n", ": row 1: column 'answers' holds a list as one text"),
        ("t.csv", f"{HEADER}a,Q,\"{{'Ada', 'Bo'}}\"\n", ": row 1: column 'answers' holds a list as one text"),
        ("t.jsonl", second(answers=["x\0y"]), r":2: column 'answers' holds the character U\+0000"),
        (
            "t.jsonl",
            raw(r'"answers": ["\frac12"]'),
            r":2: column 'answers' holds the character U\+000C; .* backslashes",
        ),
        ("t.jsonl", raw(r'"answers": ["\ud83d"]'), r":2: column 'answers' holds the character U\+D83D"),
        ("t.jsonl", second(question="Who\x1b[0m?"), r":2: column 'question' holds the character U\+001B"),
        (
            "t.jsonl",
            second(choices=["1931", "1931."]),
            ":2: question 'b' has options that differ in case, punctuation or articles only",
        ),
        ("t.jsonl", second(incorrect=["1931."]), ":2: question 'b' lists every gold answer as incorrect, too"),
        pytest.param("t.jsonl", second(answers=[True]), ":2: column 'answers' must be", marks=held),
        pytest.param("t.jsonl", second(answers=["", " "]), ":2: question 'b' has no gold answer", marks=held),
        pytest.param("t.jsonl", second(choices=["1", "2"]), ":2: question 'b' has 0 right options", marks=held),
        pytest.param("t.csv", HEADER, "has no rows", marks=held),
        pytest.param("t.csv", f"{HEADER}a,Who?\n", ": row 1: column 'answers' is missing", marks=held),
        pytest.param("t.csv", f"{HEADER}a,Who?,x,y\n", ": row 1: more cells than the header's 3", marks=held),
        pytest.param("t.csv", f"{HEADER}a,Q,\"['x', 'y']\"\n", ": row 1: column 'answers' is not JSON", marks=held),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_with_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [datetime.date(1931, 5, 4), datetime.datetime(1931, 5, 4, 10, 30), datetime.time(10, 30), b"1931"]
)
def test_dates_and_bytes_of_parquet_are_written_out_by_the_user(tmp_path, value):
    pd.DataFrame({"id": ["a"], "question": ["When?"], "answers": [[value]]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        UserError, match=r"t\.parquet: row 1: column 'answers' must be text, got \w+ .*as an answer would"
    ):
        load_dataset(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(["id", "question", "answers", "answers"], id="answers"),
        pytest.param(["id", "question", "answers", "id"], id="id"),
    ],
)
def test_two_columns_of_parquet_with_one_name_are_refused(tmp_path, columns):
    table = pa.table([["a"], ["Who?"], [["Ada"]], [["Bo"]]], names=columns)
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: two columns are named"):
        load_dataset(tmp_path / "t.parquet")


def test_a_bad_table_is_refused_before_a_model_loads(tmp_path, monkeypatch, capsys):
    from experiments.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text(second(id=""))
    (tmp_path / "study.yaml").write_text(
        "name: s\nmodels: [{name: none, path: ./empty}]\nstyles: [concise]\n"
        "datasets: [{name: own, kind: jsonl, path: t.jsonl}]\n"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "empty" / "model.safetensors").touch()  # cannot be loaded
    monkeypatch.setattr("sys.argv", ["semcal", "run", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "t.jsonl:2: the id is empty" in "".join(capsys.readouterr().err.splitlines())
    assert not (tmp_path / "runs").exists()
