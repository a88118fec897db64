"""Named datasets: the columns of the original files and of the Hub give the same questions; whole real files are read."""

from __future__ import annotations

import json
import logging

import datasets
import pytest

from semcal import UserError
from semcal.questions.load_dataset import build
from semcal.questions.named.named_datasets import NAMED, read_named
from semcal.questions.pool import pool
from tests.conftest import data_folder, needs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(folder, *rows):
    return write(folder / "rows.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def hub(monkeypatch):
    """Puts rows on a Hub that takes no other id, configuration and split than those of `NAMED`."""

    def put(kind, *rows):
        def load_dataset(path, name, *, split, revision):
            assert ((path, name, split), revision) == (NAMED[kind].hub, None)
            return datasets.Dataset.from_list(list(rows))

        monkeypatch.delenv("SEMCAL_DATA", raising=False)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return put


# ---- rows of our own -----------------------------------------------------------------------------------------------


def test_gsm8k(tmp_path, hub):
    solution = "Ann packs 4*300=<<4*300=1200>>1200 figs.\nWith 34 more it is $<<1200+34=1234>>1234.\n#### 1,234"
    rows = [{"question": "How many figs?", "answer": solution}, {"question": "And Bo?", "answer": "None.\n#### 0"}]
    first, second = read_named("gsm8k", jsonl(tmp_path, *rows))
    assert (first.id, first.answers) == ("gsm8k-00001", ("1,234", "1234"))
    assert first.worked["cot"] == "Ann packs 4*300=1200 figs.\nWith 34 more it is $1234. The answer is 1,234."
    assert (second.id, second.answers, second.worked["cot"]) == ("gsm8k-00002", ("0",), "None. The answer is 0.")
    hub("gsm8k", *rows)
    assert read_named("gsm8k", None) == [first, second]
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: column 'answer' must hold a solution that ends in '#### number'"
    ):
        read_named("gsm8k", jsonl(tmp_path, {"question": "Q?", "answer": "12"}))


def test_math500(tmp_path, hub):
    row = {"problem": "Halve $x$.", "solution": "It is $\\boxed{\\frac{x}{2}}$.", "answer": "\\frac{x}{2}"}
    row |= {"unique_id": "test/algebra/1.json", "level": 2, "subject": "Algebra"}
    (question,) = read_named("math500", jsonl(tmp_path, row))
    assert (question.id, question.group, question.answers) == (row["unique_id"], row["unique_id"], ("\\frac{x}{2}",))
    assert question.worked["cot"] == "It is $\\boxed{\\frac{x}{2}}$. The answer is $\\frac{x}{2}$."
    hub("math500", row)
    assert read_named("math500", None) == [question]


def test_openmathinstruct2_keeps_a_problem_once_under_an_id_of_its_text(tmp_path, hub, caplog):
    def row(problem, solution, answer="3"):
        return {"problem": problem, "generated_solution": solution, "expected_answer": answer, "problem_source": "math"}

    rows = [row("Add $1+2$.", "First."), row("Add $1-2$.", "Minus.", "-1"), row("Add  $1+2$.\n", "Again.")]
    with caplog.at_level(logging.WARNING):
        plus, minus = read_named("openmathinstruct2", jsonl(tmp_path, *rows))
    assert plus.worked["cot"] == "First. The answer is $3$."
    assert (minus.text, minus.answers) == ("Add $1-2$.", ("-1",))
    (record,) = caplog.records
    assert record.getMessage() == "openmathinstruct2: left out 1 rows that repeat a question, kept 2"
    hub("openmathinstruct2", *rows[1:])
    assert [q.id for q in read_named("openmathinstruct2", None)] == [minus.id, plus.id]


def test_triviaqa_of_the_csv_the_official_json_and_the_hub(tmp_path, hub):
    text = 'question,answer,false_answer\n"Which, of two?",Alpha; Alpha One; A1,Beta\n'
    (question,) = read_named("triviaqa", write(tmp_path / "t.csv", text))
    assert (question.id, question.text) == ("triviaqa-00001", "Which, of two?")
    assert question.answers == ("Alpha", "Alpha One", "A1")
    entry = {"QuestionId": "t1", "Question": "Q?", "Answer": {"Value": "V", "Aliases": ["W", "V"], "Type": "Freeform"}}
    (official,) = read_named("triviaqa", write(tmp_path / "t.json", json.dumps({"Data": [entry], "Version": 1.0})))
    assert (official.id, official.answers) == ("t1", ("V", "W"))
    row = {"question_id": "t1", "question": "Q?", "answer": {"value": "V", "aliases": ["W", "V"]}}
    hub("triviaqa", row, row)  # a question stands in the web part and in the Wikipedia part
    assert read_named("triviaqa", None) == [official]
    hub("triviaqa", row | {"answer": {"value": "<unk>", "aliases": []}})
    with pytest.raises(UserError, match="row 1: the answers of the test split are not published"):
        read_named("triviaqa", None)
    with pytest.raises(
        UserError, match=r"u\.csv: row 1: expected column 'answer' or 'Answer'; the columns are question, reply"
    ):
        read_named("triviaqa", write(tmp_path / "u.csv", "question,reply\nQ,A\n"))


def test_the_plainest_alias_of_triviaqa_comes_first(tmp_path):
    rows = "Q1,Farthing (coin); Farthing; Farthings\nQ2,Yukon Optics; PULSAR\nQ3,⒠; Venezuela; ISO:VE; Republic of Venezuela\n"
    read = read_named("triviaqa", write(tmp_path / "t.csv", "question,answer\n" + rows))
    assert [q.answers[0] for q in read] == ["Farthing", "PULSAR", "Venezuela"]
    assert set(read[2].answers) == {"⒠", "Venezuela", "ISO:VE", "Republic of Venezuela"}


def test_simpleqa_groups_questions_about_one_page(tmp_path, hub):
    meta = "{'topic': 'x', 'urls': ['https://u/1', 'https://u/2']}"
    path = write(tmp_path / "s.csv", f'metadata,problem,answer\n"{meta}",P1,A1\n"{meta}",P2,A2\n')
    one, two = read_named("simpleqa", path)
    assert one.group == two.group == "https://u/1"
    assert (one.id, two.id, one.answers) == ("simpleqa-00001", "simpleqa-00002", ("A1",))
    hub("simpleqa", *({"metadata": meta, "problem": f"P{i}", "answer": f"A{i}"} for i in (1, 2)))
    assert read_named("simpleqa", None) == [one, two]
    with pytest.raises(UserError, match="row 1: column 'metadata' is not a Python dict"):
        read_named("simpleqa", write(tmp_path / "s.csv", "metadata,problem,answer\n{,P,A\n"))


def test_simpleqa_verified_has_pages_and_ids_of_its_own(tmp_path, hub):
    rows = [
        {"original_index": i, "problem": f"P{i}", "answer": "A", "urls": f"https://u/a,_b{tail}", "multi_step": False}
        for i, tail in ((5, ",https://u/c"), (8, ""))
    ]
    hub("simpleqa-verified", *rows)
    questions = read_named("simpleqa-verified", None)
    assert [q.id for q in questions] == ["simpleqa-verified-00005", "simpleqa-verified-00008"]
    assert {q.group for q in questions} == {"https://u/a,_b"}
    cells = "".join(f'{r["original_index"]},{r["problem"]},A,"{r["urls"]}"\n' for r in rows)
    assert (
        read_named("simpleqa-verified", write(tmp_path / "v.csv", f"original_index,problem,answer,urls\n{cells}"))
        == questions
    )


CSV = """Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
T,C,Do cats fly?,Cats do not fly,"No; Cats do not fly; Not at all;","Yes; They do ; Yes",u
"""


def test_truthfulqa_of_the_csv_and_the_hub(tmp_path, hub):
    (question,) = read_named("truthfulqa", write(tmp_path / "t.csv", CSV))
    assert (question.id, question.answers) == ("truthfulqa-00001", ("Cats do not fly",))
    assert question.others == (("No",), ("Not at all",))
    assert (question.incorrect, question.choices) == (("Yes", "They do"), ())
    row = {"question": "Do cats fly?", "best_answer": "Cats do not fly", "incorrect_answers": ["Yes", "They do"]}
    hub("truthfulqa", row | {"correct_answers": ["No", "Cats do not fly", "Not at all"], "category": "C"})
    assert read_named("truthfulqa", None) == [question]


def test_truthfulqa_mc_of_the_csv_the_json_and_the_hub(tmp_path, hub):
    (question,) = read_named("truthfulqa-mc", write(tmp_path / "t.csv", CSV))
    assert (question.id, question.answers) == ("truthfulqa-mc-00001", ("Cats do not fly",))
    assert question.choices == ("Cats do not fly", "Yes", "They do")
    targets = {"Cats do not fly": 1, "Yes": 0, "They do": 0, "": 0}
    row = {"question": "Do cats fly?", "mc1_targets": targets, "mc2_targets": targets}
    assert read_named("truthfulqa-mc", write(tmp_path / "mc.json", json.dumps([row]))) == [question]
    hub("truthfulqa-mc", row | {"mc1_targets": {"choices": list(targets), "labels": list(targets.values())}})
    assert read_named("truthfulqa-mc", None) == [question]
    for labels in ([1, 1, 0, 0], [0, 0, 0, 0]):
        hub("truthfulqa-mc", row | {"mc1_targets": {"choices": list(targets), "labels": labels}})
        with pytest.raises(UserError, match=rf"'mc1_targets' has {sum(labels)} right options"):
            read_named("truthfulqa-mc", None)


def test_nq_open_answers_need_not_mean_the_same(tmp_path, hub):
    rows = [{"question": "who did it", "answer": ["Ann", "Bo", "ann", "Cy"]}, {"question": "when", "answer": ["1900"]}]
    first, second = read_named("nq-open", jsonl(tmp_path, *rows))
    assert (first.id, first.answers, first.others) == ("nq-open-00001", ("Ann",), (("Bo",), ("Cy",)))
    assert (second.answers, second.others) == (("1900",), ())
    hub("nq-open", *rows)
    assert read_named("nq-open", None) == [first, second]
    csv = "question,answer\nwho did it,Ann; Bo; ann; Cy\nwhen,1900\n"
    assert read_named("nq-open", write(tmp_path / "n.csv", csv)) == [first, second]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: question 'nq-open-00001' has no gold answer"):
        read_named("nq-open", jsonl(tmp_path, {"question": "q", "answer": []}))


def test_popqa_of_flashrag_the_tsv_and_the_hub(tmp_path, hub):
    facts = {"subj": "Fig", "prop": "genre", "obj": "jazz", "subj_id": 12, "s_pop": 3}
    flashrag = {"id": "7", "question": "What genre?", "metadata": facts, "golden_answers": ["Jazz music", "jazz"]}
    (question,) = read_named("popqa", jsonl(tmp_path, flashrag))
    assert (question.id, question.group) == ("popqa-7", "popqa-subject-12")
    assert question.answers == ("jazz", "Jazz music")
    row = facts | {"id": 7, "question": "What genre?", "possible_answers": '["jazz", "Jazz music"]'}
    hub("popqa", row)
    assert read_named("popqa", None) == [question]
    tsv = 'id\tobj\tsubj_id\tquestion\tpossible_answers\n7\tjazz\t12\tWhat genre?\t"[""jazz"", ""Jazz music""]"\n'
    assert read_named("popqa", write(tmp_path / "p.tsv", tsv)) == [question]
    hub("popqa", row | {"possible_answers": "jazz"})
    with pytest.raises(UserError, match="row 1: column 'possible_answers' is not a JSON list"):
        read_named("popqa", None)


@pytest.mark.parametrize("kind", [kind for kind, named in NAMED.items() if named.rows is None])
def test_other_columns_are_refused_with_those_there_are(tmp_path, kind):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: expected column '.*; the columns are x, y") as caught:
        read_named(kind, jsonl(tmp_path, {"x": 1, "y": 2}))
    assert "\n" not in str(caught.value)


def test_a_name_or_an_argument_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="unknown dataset 'gsm', did you mean 'gsm8k'"):
        read_named("gsm", None)
    with pytest.raises(UserError, match="is a file, and split and revision choose a version on the Hub"):
        read_named("gsm8k", tmp_path / "t.jsonl", split="train")


# ---- the whole real files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "rows"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 1319),
        ("math500", "math500/test.jsonl", 500),
        ("openmathinstruct2", "openmathinstruct2_sample/openmathinstruct2.test", 100),
        ("triviaqa", "triviaqa/TriviaQA.csv", 3610),
        ("simpleqa", "simpleqa/simple_qa_test_set.csv", 4326),
        ("simpleqa-verified", "simpleqa/simpleqa_verified.csv", 1000),
        ("truthfulqa", "truthfulqa/TruthfulQA.csv", 790),
        ("truthfulqa-mc", "truthfulqa/TruthfulQA.csv", 790),
        ("truthfulqa-mc", "truthfulqa/mc_task.json", 790),
        ("nq-open", "nq_open/NQ-open.dev.jsonl", 3610),
        ("nq-open", "nq_open/NQ-open.efficientqa.dev.1.1.jsonl", 1800),
        ("nq-open", "triviaqa/Natural_Questions.csv", 3610),
        ("popqa", "popqa/popqa_1000.jsonl", 1000),
    ],
)
def test_the_whole_real_file(kind, name, rows):
    questions = read_named(kind, needs(data_folder() / name))
    assert len(questions) == rows
    assert len({q.id for q in questions}) == rows
    assert all(q.answers[0].strip() for q in questions)
    if NAMED[kind].semantics == "numeric":
        assert all(
            q.worked["cot"].endswith((f"The answer is {q.answers[0]}.", f"${q.answers[0]}$.")) for q in questions
        )
    if NAMED[kind].semantics == "choice":
        assert all(q.answers[0] in q.choices and len(q.choices) > 1 for q in questions)
    dataset = build(kind, questions, n=None, exemplars=32, seed=0)
    own = any(q.worked or q.choices for q in questions)
    assert len(dataset.exemplars) == (32 if own else len(pool()))
    assert len(dataset.questions) == rows or own
    assert not {q.group for q in dataset.exemplars} & {q.group for q in dataset.questions}


def test_no_calculator_marks_are_left_in_gsm8k():
    questions = read_named("gsm8k", needs(data_folder() / "gsm8k/test.jsonl"))
    assert not any(mark in q.worked["cot"] for q in questions for mark in ("<<", ">>", "####"))
    assert all(q.answers[-1].lstrip("-").replace(".", "").isdigit() for q in questions)


def test_both_files_of_truthfulqa_hold_the_same_options():
    one, other = (needs(data_folder() / "truthfulqa" / name) for name in ("TruthfulQA.csv", "mc_task.json"))
    assert read_named("truthfulqa-mc", one) == read_named("truthfulqa-mc", other)
