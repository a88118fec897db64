"""Labels and cells of tables that look right and are not: joined, refused with the place, or said."""

from __future__ import annotations

import pytest

from semcal import UserError, load_dataset
from tests.hostile.test_tables import GOOD, HEADER, lines, second

held = pytest.mark.held_before


def groups(tmp_path, *labels):
    rows = [{"id": f"q{i}", "question": f"Who {i}?", "answers": ["Ada"], "group": g} for i, g in enumerate(labels)]
    (tmp_path / "t.jsonl").write_text(lines(*rows, good=False))
    return {q.id: q.group for q in load_dataset(tmp_path / "t.jsonl").questions}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada", "Ada "),
        ("Ada", "\u200bAda"),
        ("caf\u00e9", "cafe\u0301"),
        ("Ada  L", "Ada L"),
        ("Ada\ufeff", "Ada"),
        pytest.param(1, 1.0, marks=held),
        pytest.param(1, "1", marks=held),
    ],
)
def test_labels_of_one_look_are_one_group(tmp_path, one, other):
    found = groups(tmp_path, one, other, "Bo")
    assert found["q0"] == found["q1"] != found["q2"]


@pytest.mark.parametrize("nothing", [" ", "\u200b", "\t", pytest.param("", marks=held), pytest.param(None, marks=held)])
def test_a_label_of_nothing_makes_no_group(tmp_path, nothing):
    assert groups(tmp_path, nothing, nothing) == {"q0": "q0", "q1": "q1"}


@pytest.mark.parametrize("other", ["a\u200b", "\ufeffa", "a\u00ad"])
def test_ids_that_differ_in_what_cannot_be_seen_are_refused(tmp_path, other):
    (tmp_path / "t.jsonl").write_text(lines(GOOD | {"id": other, "question": "Where?"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.jsonl:2: id .* looks like 'a'"):
        load_dataset(tmp_path / "t.jsonl")


@pytest.mark.parametrize("cell", ["1.23457E+11", "1E+15", "-9.1E+22", " 6.02E+23 "])
def test_a_number_that_a_spreadsheet_rounded_is_refused(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"{HEADER}a,How many?,{cell}\n")
    with pytest.raises(UserError, match=r"t\.csv: row 1: column 'answers' holds .* its last digits are lost"):
        load_dataset(tmp_path / "t.csv")


@pytest.mark.held_before
@pytest.mark.parametrize("cell", ["1e3", "6.02e23", "E+10", "B+", "C++"])
def test_what_someone_typed_is_taken(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"{HEADER}a,How many?,{cell}\n")
    assert load_dataset(tmp_path / "t.csv").questions[0].answers == (cell,)


@pytest.mark.parametrize("answer", ["AT&amp;T", "Dick &#38; Jane", "&quot;Ada&quot;", "caf&#xe9;"])
def test_answers_in_html_are_said(tmp_path, caplog, answer):
    (tmp_path / "t.jsonl").write_text(second(answers=[answer]))
    load_dataset(tmp_path / "t.jsonl")
    assert "answers of 1 questions hold characters as HTML writes them" in caplog.text


@pytest.mark.held_before
@pytest.mark.parametrize("answer", ["AT&T", "R&B;", "&c.", "Q & A"])
def test_an_ampersand_is_no_html(tmp_path, caplog, answer):
    (tmp_path / "t.jsonl").write_text(second(answers=[answer]))
    load_dataset(tmp_path / "t.jsonl")
    assert "HTML" not in caplog.text
