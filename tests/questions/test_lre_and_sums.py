"""Relations of real facts, small sums, and where files are looked for."""

from __future__ import annotations

import json

import pytest

from experiments.config.study import Study, load_dataset
from semcal import UserError
from semcal import load_dataset as public
from semcal.questions.named.lre import QUESTIONS
from semcal.questions.named.named_datasets import read_named
from tests.conftest import data_folder, needs


def relation(folder, name="country_capital_city", *pairs):
    samples = [{"subject": s, "object": o} for s, o in pairs or (("Peru", "Lima"), ("Bolivia", "Sucre"))]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "prompt_templates": ["{} is"], "samples": samples}))
    return path


def test_a_relation_is_asked_in_words(tmp_path):
    first, _ = read_named("lre", relation(tmp_path))
    assert (first.text, first.answers, first.id) == (
        "What is the capital of Peru?",
        ("Lima",),
        "lre-country_capital_city-00001",
    )


def test_a_subject_with_several_objects_is_one_question(tmp_path):
    pairs = (("Peru", "Lima"), ("Bolivia", "Sucre"), ("Bolivia", "La Paz"), ("Bolivia", "Sucre"))
    _, second = read_named("lre", relation(tmp_path, "country_capital_city", *pairs))
    assert (second.answers, second.others) == (("Sucre",), (("La Paz",),))


def test_relations_and_original_files_are_found_below_semcal_data_and_no_hub_is_asked(tmp_path, monkeypatch):
    relation(tmp_path / "lre_relations")
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": "Q?", "answer": "So.\n#### 3"}) + "\n")
    monkeypatch.setenv("SEMCAL_DATA", str(tmp_path))
    assert [q.answers[0] for q in read_named("lre", None, split="country_capital_city")] == ["Lima", "Sucre"]
    assert [q.answers for q in read_named("gsm8k", None)] == [("3",)]
    assert public("lre", split="country_capital_city").questions[0].text.startswith("What is the capital of")


def test_a_split_of_the_hub_is_not_taken_from_the_folder(tmp_path, monkeypatch):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("")
    monkeypatch.setenv("SEMCAL_DATA", str(tmp_path))
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: asked.append((a, k)) or [])
    assert read_named("gsm8k", None, split="train[:5]") == []
    assert asked


def test_a_study_finds_a_relative_path_below_semcal_data(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "t.txt").write_text("One two three, four five six.\n\nSeven eight nine, ten eleven twelve.\n")
    monkeypatch.setenv("SEMCAL_DATA", str(tmp_path))
    study = Study.model_validate(
        {
            "name": "s",
            "models": [{"path": "atlas:base"}],
            "datasets": [{"kind": "continuation", "path": "texts/t.txt", "prompt_words": [2], "answer_words": 2}],
            "styles": ["continuation"],
            "semantics": [{"kind": "kth-word", "k": 1}],
        }
    )
    assert len(load_dataset(study.datasets[0], study.prompting).questions) == 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "lre: set split to one of its relations: city_in_country,"),
        ({"split": "country_capital"}, "did you mean 'country_capital_city'"),
        ({"split": "country_currency"}, "the Hub has none; clone https://github.com/evandez/relations"),
        ({"split": "country_currency", "revision": "main"}, "lre is not read from the Hub and has no revision 'main'"),
    ],
)
def test_a_relation_that_cannot_be_read(monkeypatch, how, message):
    monkeypatch.delenv("SEMCAL_DATA", raising=False)
    with pytest.raises(UserError, match=message):
        read_named("lre", None, **how)


def test_a_file_that_holds_no_relation(tmp_path):
    path = relation(tmp_path)
    path.write_text('{"samples": [{"subject": "Peru"}]}')
    with pytest.raises(UserError, match=r"country_capital_city\.json is not a relation of LRE"):
        read_named("lre", path)
    with pytest.raises(UserError, match="'rows' is not one of its relations"):
        read_named("lre", relation(tmp_path, "rows"))


def test_every_relation_of_the_original_files_has_a_question():
    folder = needs(data_folder() / "lre_relations")
    files = sorted(folder.glob("*.json"))
    assert {f.stem for f in files} == set(QUESTIONS)
    for file in files:
        questions = read_named("lre", file)
        assert len({q.id for q in questions}) == len(questions) > 10


@pytest.mark.parametrize(("size", "many"), [("1+1", 81), ("2+1", 810), ("2+2", 8100)])
def test_sums_are_right_and_every_pair_occurs_once(size, many):
    questions = read_named("sums", None, split=size)
    assert len({q.text for q in questions}) == len(questions) == many
    for q in questions[:: max(1, many // 50)]:
        first, second = (int(n) for n in q.text.removeprefix("What is ").removesuffix("?").split(" + "))
        assert q.answers == (str(first + second),)
        assert q.worked["cot"].endswith(f"make {first + second}.\nThe answer is {first + second}.")


def test_both_orders_of_a_sum_share_a_group_and_so_a_side_of_every_split():
    by_text = {q.text: q.group for q in read_named("sums", None)}
    assert by_text["What is 17 + 25?"] == by_text["What is 25 + 17?"] != by_text["What is 17 + 26?"]
    dataset = public("sums", n=200, exemplars=32)
    assert not {q.group for q in dataset.exemplars} & {q.group for q in dataset.questions}


def test_sums_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="sums are generated and not read from"):
        read_named("sums", tmp_path)
    with pytest.raises(UserError, match=r"sums: '3\+3' is not a valid split"):
        read_named("sums", None, split="3+3")
