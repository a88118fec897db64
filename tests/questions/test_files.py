"""The user's own files: every field in every format, and file and row of what cannot be taken."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from semcal import UserError
from semcal.questions.load_dataset import read_table


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl_with_every_field(tmp_path):
    record = {
        "id": 7,
        "question": "Who?",
        "answers": ["Ada", "A."],
        "group": "g",
        "choices": ["Ada", "Bo"],
        "worked": {"cot": "Think. The answer is Ada."},
    }
    (question,) = read_table(write(tmp_path / "q.jsonl", json.dumps(record) + "\n\n"))
    assert (question.id, question.text, question.answers) == ("7", "Who?", ("Ada", "A."))
    assert (question.group, question.choices) == ("g", ("Ada", "Bo"))
    assert question.worked["cot"].endswith("Ada.")


GOOD = '{"id": "a", "question": "Who?", "answers": ["Ada"]}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json}", r"q\.jsonl:2: not JSON"),
        ('["a"]', r"q\.jsonl:2: expected an object, got a list"),
        ('{"id": "b", "question": "Q"}', r"q\.jsonl:2: field 'answers' is missing"),
        ('{"id": "b", "question": " ", "answers": ["x"]}', r"q\.jsonl:2: question 'b' is empty"),
        ('{"id": "b", "question": "Q", "answers": []}', r"q\.jsonl:2: question 'b' has no gold answer"),
        ('{"id": "b", "question": "Q", "answers": [""]}', "no gold answer"),
        ('{"id": "b", "question": true, "answers": ["x"]}', "'question' must be text, got bool"),
        ('{"id": "b", "question": "Q", "answers": ["x"], "anwser": 1}', "unknown field 'anwser'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "q.jsonl", GOOD + line + "\n"))


FULL = {
    "id": "a",
    "question": "Which, of two?",
    "answers": ["Ada", "Ada L."],
    "group": "g",
    "choices": ["Ada", "Bo"],
    "others": [["Cy", "C."], ["Di"]],
    "incorrect": ["Bo"],
    "worked": {"cot": "Think. The answer is Ada."},
}
BARE = {"id": "b", "question": "Who?", "answers": ["Ed"]}


def as_jsonl(folder):
    return write(folder / "q.jsonl", "".join(json.dumps(r) + "\n" for r in (FULL, BARE)))


def as_json(folder):
    return write(folder / "q.json", json.dumps([FULL, BARE]))


def as_csv(folder, suffix="csv", **how):
    full = {k: v if isinstance(v, str) else json.dumps(v) for k, v in FULL.items()}
    pd.DataFrame([full, BARE | {"answers": "Ed"}]).to_csv(folder / f"q.{suffix}", index=False, **how)
    return folder / f"q.{suffix}"


def as_tsv(folder):
    return as_csv(folder, "tsv", sep="\t")


def as_parquet(folder):
    pd.DataFrame([FULL, BARE]).to_parquet(folder / "q.parquet")
    return folder / "q.parquet"


@pytest.mark.parametrize("written", [as_jsonl, as_json, as_csv, as_tsv, as_parquet])
def test_every_format_gives_the_same_questions(tmp_path, written):
    full, bare = read_table(written(tmp_path))
    assert (full.id, full.text, full.answers, full.group) == ("a", "Which, of two?", ("Ada", "Ada L."), "g")
    assert (full.choices, full.incorrect) == (("Ada", "Bo"), ("Bo",))
    assert full.others == (("Cy", "C."), ("Di",))
    assert full.worked == {"cot": "Think. The answer is Ada."}
    assert (bare.id, bare.answers, bare.group) == ("b", ("Ed",), "b")
    assert (bare.choices, bare.others, bare.incorrect, bare.worked) == ((), (), (), {})


def test_without_ids_a_question_is_known_by_its_row(tmp_path):
    rows = 'Question;Answer\nWho?;Ada\n;\n"Where,\nand when?";Delft\n'
    first, second = read_table(write(tmp_path / "q.csv", rows))
    assert (first.id, first.answers, second.id, second.text) == ("1", ("Ada",), "3", "Where,\nand when?")


def test_others_may_be_texts(tmp_path):
    line = json.dumps(BARE | {"others": ["Flo", ["Gus", "G."]]})
    (question,) = read_table(write(tmp_path / "q.jsonl", line))
    assert question.others == (("Flo",), ("Gus", "G."))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('b,Q,"[""x"""', r"q\.csv: row 2: column 'answers' is not JSON .*write a list as"),
        ("b,Q,", r"q\.csv: row 2: question 'b' has no gold answer"),
        ("b,Q", r"q\.csv: row 2: column 'answers' is missing"),
        ("b,Q,x,y", r"q\.csv: row 2: more cells than the header's 3"),
        ('b,"Q,x', r"q\.csv: row 2: not CSV"),
        ('b,Q,"[[""x""]]"', r"q\.csv: row 2: column 'answers' must be a list of texts"),
    ],
)
def test_a_bad_row_of_a_csv_is_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "q.csv", f"id,question,answers\na,Who?,Ada\n{row}\n"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": ["Bo", "Cy"]}, "question 'a' has 0 right options; expected exactly one"),
        ({"choices": ["Ada", "Ada L."]}, "has 2 right options"),
        ({"choices": ["Ada", "Bo", "Bo"]}, "distinct options"),
        ({"choices": ["Ada", *map(str, range(26))]}, "at most 26"),
        ({"others": "Cy"}, "'others' must be a list"),
        ({"others": [{"x": 1}]}, "'others' must be a list of texts"),
        ({"worked": {"rhyme": "x"}}, "'worked' must map styles"),
        ({"answers": None}, "'answers' is empty"),
    ],
)
def test_fields_that_cannot_be_are_named(tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        read_table(write(tmp_path / "q.jsonl", json.dumps(FULL | fields)))
    assert str(caught.value).startswith(f"{tmp_path}/q.jsonl:1: ")
    assert "\n" not in str(caught.value)


def test_a_column_that_is_missing_or_unknown_is_named_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"q\.csv: row 1: field 'answers' is missing; .* found id, question"):
        read_table(write(tmp_path / "q.csv", "id,question\na,Who?\n"))
    pd.DataFrame([{"id": 1, "question": "Q", "answers": ["x"], "groups": "g"}]).to_parquet(tmp_path / "q.parquet")
    with pytest.raises(UserError, match=r"row 1: unknown field 'groups', did you mean 'group'\?; expected answers, ch"):
        read_table(tmp_path / "q.parquet")


def test_columns_of_ones_own_are_left_out_and_named(tmp_path, caplog):
    (question,) = read_table(write(tmp_path / "q.csv", "question,answer,Checked by,Notes\nWho?,Ada,me,n\n"))
    assert question.answers == ("Ada",)
    assert "q.csv: columns that are not read: Checked by, Notes" in caplog.text
