"""A text is cut where the prompt alone tells, and what follows is the gold answer."""

from __future__ import annotations

import pytest

from semcal import UserError
from semcal.questions.continuation import read_continuations
from tests.conftest import data_folder, needs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_continuations_are_cut_where_the_prompt_alone_tells(tmp_path):
    text = "One two three, four five six. Seven eight nine.\n\nTwelve (12) and, thirteen.  Too soon over."
    path = write(tmp_path / "t.txt", text)
    read = {q.id: q for q in read_continuations(path, split=r"\n\n", prompt_words=[2, 4], answer_words=3)}
    assert list(read) == ["t-000000-2", "t-000000-4", "t-000001-2", "t-000001-4"]
    assert (read["t-000000-2"].text, read["t-000000-2"].answers) == ("One two three,", ("four five six.",))
    assert (read["t-000000-4"].text, read["t-000000-4"].answers) == (
        "One two three, four five six.",
        ("Seven eight nine.",),
    )
    assert (read["t-000001-2"].text, read["t-000001-2"].answers) == ("Twelve (12) and,", ("thirteen.  Too soon",))
    assert read["t-000000-2"].group == read["t-000000-4"].group != read["t-000001-2"].group
    assert len(read_continuations(path, split=r"(\n\n)|(XX)", prompt_words=[2], answer_words=3)) == 2
    with pytest.raises(UserError, match="none of its 1 documents has"):
        read_continuations(path, split="XX", prompt_words=[80], answer_words=10)
    with pytest.raises(UserError, match="not a valid regular expression"):
        read_continuations(path, split="(", prompt_words=[1], answer_words=1)


def test_continuations_of_the_real_text():
    path = needs(data_folder() / "tinystories_val/tinystories_val.txt")
    text = path.read_text(encoding="utf-8-sig")
    questions = read_continuations(
        path, split=r"\n\n(?=Once |There once |A long )", prompt_words=[16, 48], answer_words=8
    )
    assert len(questions) > 1000
    assert len({q.group for q in questions}) > 600
    for q in questions:
        assert q.text in text
        assert q.text[-1] in ".,;:!?"
