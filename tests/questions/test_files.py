"""Readers take the original formats whole, and say file and line of what they cannot take."""

from __future__ import annotations

import json

import pytest

from semcal import UserError
from semcal.questions import build, read_continuations, read_jsonl, read_simpleqa, read_triviaqa
from tests.conftest import data_folder, needs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_the_plainest_alias_of_triviaqa_comes_first(tmp_path):
    rows = "Q1,Farthing (coin); Farthing; Farthings\nQ2,Yukon Optics; PULSAR\nQ3,⒠; Venezuela; ISO:VE; Republic of Venezuela\n"
    read = read_triviaqa(write(tmp_path / "t.csv", "question,answer\n" + rows))
    assert [q.answers[0] for q in read] == ["Farthing", "PULSAR", "Venezuela"]
    assert set(read[2].answers) == {"⒠", "Venezuela", "ISO:VE", "Republic of Venezuela"}


def test_jsonl_with_every_field(tmp_path):
    record = {
        "id": 7,
        "question": "Who?",
        "answers": ["Ada", "A."],
        "group": "g",
        "choices": ["Ada", "Bo"],
        "worked": {"cot": "Think. The answer is Ada."},
    }
    (question,) = read_jsonl(write(tmp_path / "q.jsonl", json.dumps(record) + "\n\n"))
    assert (question.id, question.text, question.answers) == ("7", "Who?", ("Ada", "A."))
    assert (question.group, question.choices) == ("g", ("Ada", "Bo"))
    assert question.worked["cot"].endswith("Ada.")


GOOD = '{"id": "a", "question": "Who?", "answers": ["Ada"]}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json}", r"q\.jsonl:2: not JSON"),
        ('["a"]', r"q\.jsonl:2: a list where an object"),
        ('{"id": "b", "question": "Q"}', r"q\.jsonl:2: no field 'answers'"),
        ('{"id": "b", "question": " ", "answers": ["x"]}', r"q\.jsonl:2: question 'b' is empty"),
        ('{"id": "b", "question": "Q", "answers": []}', r"q\.jsonl:2: question 'b' has no gold answer"),
        ('{"id": "b", "question": "Q", "answers": [""]}', "no gold answer"),
        ('{"id": "b", "question": "Q", "answers": "x"}', "'answers' must be a list"),
        ('{"id": "b", "question": 3.5, "answers": ["x"]}', "'question' is a float"),
        ('{"id": "b", "question": "Q", "answers": ["x"], "anwser": 1}', "unknown field 'anwser'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_jsonl(write(tmp_path / "q.jsonl", GOOD + line + "\n"))


def test_missing_file_folder_and_binary(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        read_triviaqa(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_jsonl(tmp_path / "b.jsonl")


def test_triviaqa_rows_of_our_own(tmp_path):
    text = 'question,answer,false_answer\n"Which, of two?",Alpha; Alpha One; A1,Beta\n'
    (question,) = read_triviaqa(write(tmp_path / "t.csv", text))
    assert question.text == "Which, of two?"
    assert question.answers == ("Alpha", "Alpha One", "A1")
    official = {"Data": [{"QuestionId": "t1", "Question": "Q?", "Answer": {"Value": "V", "Aliases": ["W"]}}]}
    (question,) = read_triviaqa(write(tmp_path / "t.json", json.dumps(official)))
    assert (question.id, question.answers) == ("t1", ("V", "W"))
    with pytest.raises(UserError, match="no column 'answer'"):
        read_triviaqa(write(tmp_path / "u.csv", "question,reply\nQ,A\n"))


def test_simpleqa_groups_questions_about_one_page(tmp_path):
    meta = "\"{'topic': 'x', 'urls': ['u1']}\""
    text = f"metadata,problem,answer\n{meta},P1,A1\n{meta},P2,A2\n"
    one, two = read_simpleqa(write(tmp_path / "s.csv", text))
    assert one.group == two.group == "u1"
    assert one.id != two.id


@pytest.mark.parametrize(
    ("reader", "name", "rows"),
    [
        (read_triviaqa, "triviaqa/TriviaQA.csv", 3610),
        (read_simpleqa, "simpleqa/simple_qa_test_set.csv", 4326),
        (read_simpleqa, "simpleqa/simpleqa_verified.csv", 1000),
    ],
)
def test_the_whole_real_file(reader, name, rows):
    questions = reader(needs(data_folder() / name))
    assert len(questions) == rows
    assert len({q.id for q in questions}) == rows
    assert all(q.answers[0].strip() for q in questions)


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
    with pytest.raises(UserError, match="no regular expression"):
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


def questions_of(n, **changes):
    from semcal import Question

    return [Question(**{"id": f"q{i}", "text": f"Question {i}?", "answers": ("x",)} | changes) for i in range(n)]


def test_a_dataset_keeps_exemplars_out_of_what_is_evaluated():
    from semcal import Question

    pool = questions_of(40)
    twins = [Question(id=f"twin{i}", text=f"question {i}", answers=("x",)) for i in range(40)]
    dataset = build("d", pool + twins, n=None, exemplars=10, seed=3)
    shown = {q.text.lower().strip("?") for q in dataset.exemplars}
    assert len(dataset.exemplars) == 10
    assert not shown & {q.text.lower().strip("?") for q in dataset.questions}
    assert build("d", pool + twins, n=None, exemplars=10, seed=3) == dataset
    assert build("d", pool + twins, n=None, exemplars=10, seed=4) != dataset


def test_exemplars_share_no_group_with_the_evaluated():
    pool = [q for i in range(10) for q in questions_of(1, id=f"a{i}", group=f"g{i % 3}", text=f"T{i}")]
    dataset = build("d", pool, n=None, exemplars=1, seed=0)
    assert not {q.group for q in dataset.exemplars} & {q.group for q in dataset.questions}


def test_one_id_with_two_texts_is_refused_and_an_exact_repeat_kept_once():
    pool = questions_of(3)
    assert len(build("d", pool + pool, n=None, exemplars=0, seed=0).questions) == 3
    with pytest.raises(UserError, match="id 'q0' is two questions"):
        build("d", pool + questions_of(1, text="Another?"), n=None, exemplars=0, seed=0)
    with pytest.raises(UserError, match="n is 5, but"):
        build("d", pool, n=5, exemplars=0, seed=0)
    with pytest.raises(UserError, match="no question is left"):
        build("d", pool, n=None, exemplars=3, seed=0)
