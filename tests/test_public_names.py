"""The public names: the examples in their docstrings run, and a user's mistake is answered in one line."""

from __future__ import annotations

import doctest
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probes
import semcal
from semcal import LanguageModel, Question, Run, UserError, collapse, load_dataset, run_study, sample
from semcal.models.checkpoint import Answer
from semcal.models.weights import memory_fingerprint
from semcal.questions.question import CONTINUATION
from semcal.runs.run_plots import RunPlots
from semcal.sampling.records import Sampling
from semcal.semantics.collapsing.alias_table import Aliases

ROOT = Path(__file__).parents[1]
Q = Question(id="q", text="Capital of France?", answers=("Paris",))


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )


def write_scored_run(folder: Path) -> None:
    questions = [replace(Q, id=name) for name in ("a", "b")]
    empty = {"others": [[], []], "incorrect": [[], []], "choices": [[], []]}
    table = pd.DataFrame([{"id": q.id, "text": q.text, "group": q.id, "answers": list(q.answers)} for q in questions])
    run = Run(folder)
    run.write_config({})
    run.write_questions(table.assign(**empty), Aliases())
    run.write_classes(collapse(questions, [["Paris", "Paris"], ["Paris", "Lyon"]]))


@pytest.mark.parametrize(
    "shown",
    [
        UserError,
        load_dataset,
        Question,
        LanguageModel.load,
        LanguageModel.of,
        sample,
        collapse,
        pytest.param(run_study, marks=pytest.mark.long),
        Run,
        semcal.calibrate,
        semcal.calibration.smece,
        probes.LinearProbe,
        probes.capture,
        probes.plot,
        RunPlots,
    ],
    ids=lambda shown: shown.__qualname__,
)
def test_the_example_in_a_docstring_runs(shown, checkpoint, tmp_path):
    text = shown.__doc__
    if shown in (Run, RunPlots, probes.plot):
        write_scored_run(tmp_path)
    scope = {"semcal": semcal, "probes": probes, "np": np, "path": str(checkpoint), "folder": str(tmp_path)}
    example = doctest.DocTestParser().get_doctest(text, scope, shown.__qualname__, None, None)
    assert example.examples, f"{shown.__qualname__} shows no use of itself"
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_public_name_is_there_and_importing_it_needs_no_torch():
    for name in semcal.__all__:
        assert getattr(semcal, name) is not None
    assert set(semcal.__all__) <= set(dir(semcal))
    assert semcal.__version__
    with pytest.raises(AttributeError, match="has no attribute 'colapse'"):
        semcal.colapse  # noqa: B018
    code = "import sys, semcal; semcal.collapse, semcal.load_dataset, semcal.Question; print('torch' in sys.modules)"
    assert run_python(code, ROOT).stdout.strip() == "False"


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_one_text_is_one_prompt(tiny):
    answers = sample(tiny, "the answer is", m=8, max_new_tokens=2)
    assert sum(answer.count for answer in answers) == 8
    assert [answers] == sample(tiny, ["the answer is"], m=8, max_new_tokens=2)


def test_settings_are_those_of_sampling(tiny):
    assert sample(tiny, "red", m=8, stop="blue") == sample(tiny, "red", m=8, stop=["blue"])
    with pytest.raises(UserError, match="unknown sampling setting 'max_tokens', did you mean 'max_new_tokens'"):
        sample(tiny, "red", max_tokens=3)
    with pytest.raises(UserError, match="expected prompts as text, got Question "):
        sample(tiny, [Q])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="expected prompts as text, got int 3"):
        sample(tiny, 3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(UserError, match="expected a model of semcal, got LlamaForCausalLM"):
        sample(tiny.model, "red")  # pyright: ignore[reportCallIssue, reportArgumentType]


# ---- a model in memory ---------------------------------------------------------------------------------------------


def test_a_model_in_memory_samples_like_the_one_on_disk(tiny, checkpoint):
    model = LanguageModel.load(checkpoint, device="cpu").model.train()
    held = LanguageModel.of(model, tiny.tokenizer, name="mine")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert sample(held, ["red blue"], m=20, max_new_tokens=4) == sample(tiny, ["red blue"], m=20, max_new_tokens=4)
    np.testing.assert_array_equal(probes.capture(held, ["red"]).values, probes.capture(tiny, ["red"]).values)


def test_the_fingerprint_in_memory_follows_the_weights(checkpoint):
    model = LanguageModel.load(checkpoint, device="cpu").model
    before = memory_fingerprint(model)
    assert before == memory_fingerprint(model)
    next(model.parameters()).data[3, 3] += 1
    assert before != memory_fingerprint(model)


def test_a_model_object_is_not_a_path(tiny):
    with pytest.raises(UserError, match=r"got a LlamaForCausalLM; .* use LanguageModel.of\(model, tokenizer\)"):
        LanguageModel.load(tiny.model)
    with pytest.raises(UserError, match="expected a causal language model of transformers, got a LlamaModel"):
        LanguageModel.of(tiny.model.model, tiny.tokenizer)
    with pytest.raises(UserError, match="expected a tokenizer of transformers, got a str"):
        LanguageModel.of(tiny.model, "gpt2")  # pyright: ignore[reportArgumentType]


# ---- questions and classes -----------------------------------------------------------------------------------------


def test_one_text_is_one_gold_answer():
    assert Question(id="q", text="?", answers="Northton").answers == ("Northton",)  # pyright: ignore[reportArgumentType]


def test_datasets_are_loaded_by_name_or_from_a_file(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("id,question,answers\na,One?,1\nb,Two?,2\nc,Three?,3\n")
    dataset = load_dataset(file, n=2, exemplars=1)
    assert (dataset.name, len(dataset.questions), len(dataset.exemplars)) == ("mine", 2, 28)  # those of the pool
    named = tmp_path / "gsm8k.jsonl"
    named.write_text('{"question": "1 + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n')
    assert load_dataset("gsm8k", path=named).questions[0].answers == ("2",)
    with pytest.raises(UserError, match="no dataset 'trivia', did you mean 'triviaqa'"):
        load_dataset("trivia")
    with pytest.raises(UserError, match="path, split and revision belong to a named dataset"):
        load_dataset(file, split="test")


def test_answers_may_be_texts_pairs_or_what_sample_returns():
    answers = [Answer("Paris.", (1,), 3, np.log(0.5), "stop"), Answer("Lyon", (2,), 1, np.log(0.25), "stop")]
    plain = collapse([Q], [["Paris.", "Lyon", "paris", "Paris"]])
    pairs = collapse([Q], [[("Paris.", 3), ("Lyon", 1)]])
    full = collapse([Q], [answers])
    for table in (plain, pairs, full):
        assert table.classes == (("paris", "lyon"),)
        assert table.counts.tolist() == [[3, 1]]
        assert table.gold.tolist() == [[True, False]]
    assert plain.masses is None
    assert np.isnan(plain.seen_mass).all()
    np.testing.assert_allclose(full.masses, [[0.5, 0.5]])  # the mass not seen goes to the class seen once
    np.testing.assert_allclose(full.seen_mass, [0.75])


def test_any_function_is_a_b():
    by_length = collapse([Q], [["Paris", "Lyons", "Nice"]], lambda _, text: str(len(text)))
    assert by_length.classes == (("5", "4"),)
    assert by_length.gold.tolist() == [[True, False]]
    styled = collapse([Q], [["a", "b"]], lambda _question, _text, style: style, style="sentence")
    assert styled.classes == (("sentence", "concise"),)  # gold is read as a concise answer
    unread = collapse([Q], [["Paris", "who knows"]], lambda _, text: None if " " in text else text)
    assert unread.unparsed.tolist() == [0]
    assert not unread.gold[0, 0]


def test_the_last_half_word_of_a_cut_continuation_is_dropped():
    cut, whole = Answer("one tw", (1,), 1, None, "length"), Answer("one two", (2,), 1, None, "stop")
    table = collapse([Q], [[cut, whole]], lambda _, text: text.strip() or None, style=CONTINUATION)
    assert table.classes[0][:2] == ("one", "one two")


@pytest.mark.parametrize(
    ("answers", "b", "message"),
    [
        ([["a"], ["b"]], None, "expected one list of answers per question, got 2 for 1 questions"),
        ([[]], None, "question 'q' has 0 answers"),
        ([["a"]], lambda _, text: len(text), "b returned 1; expected a non-empty text or None"),
        ([["a"]], lambda _, _text: None, "b finds no label in the gold answers of q"),
        ([["a"]], 3, "b is a int; expected a function"),
    ],
)
def test_what_cannot_be_collapsed_is_one_line(answers, b, message):
    with pytest.raises(UserError, match=message):
        collapse([Q], answers, b)


def test_questions_with_different_numbers_of_samples_are_refused():
    other = Question(id="r", text="Capital of Italy?", answers=("Rome",))
    with pytest.raises(UserError, match="question 'r' has 1 answers and 'q' has 2; expected the same number"):
        collapse([Q, other], [["Paris", "Paris"], ["Rome"]])


def test_an_atlas_dataset_brings_its_aliases():
    dataset = load_dataset("atlas-facts", n=3, exemplars=1)
    form, label = next((f, c) for f, c in dataset.aliases.items() if f.lower() != c.lower())
    assert collapse(dataset, [[form]] * 3).classes[0][0] == label


# ---- studies and packages ------------------------------------------------------------------------------------------


def test_a_study_that_is_invalid_is_one_line():
    with pytest.raises(UserError, match="study: unknown key 'modles'"):
        run_study({"name": "x", "modles": []})
    with pytest.raises(UserError, match="overrides change a study file"):
        run_study({"name": "x"}, ["sampling.m=2"])
    with pytest.raises(UserError, match=r"no file nowhere\.yaml"):
        run_study("nowhere.yaml")


def test_a_run_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a run folder: there is no such folder; `semcal ls`"):
        Run.open("nowhere")
    with pytest.raises(UserError, match=str(tmp_path)):
        Run.open(tmp_path)


@pytest.mark.parametrize("hiding", ["probes/__init__.py", "probes.py"])
def test_a_folder_that_hides_a_package_is_named(tmp_path, hiding):
    file = tmp_path / hiding
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    found = run_python("import semcal\nfrom probes import LinearProbe", tmp_path)
    folder = file.parent if file.name == "__init__.py" else file
    assert f"{folder.resolve()} hides semcal's package 'probes'; rename it" in found.stderr
    found = run_python("import semcal\nsemcal.run_study('s.yaml')", tmp_path)
    assert found.stderr.strip().splitlines()[-1].startswith("semcal.errors.UserError: ")


def test_sampling_has_the_settings_that_the_docstring_names():
    assert all(name in str(sample.__doc__) for name in Sampling.__dataclass_fields__)
