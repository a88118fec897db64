"""One alias table for all questions: it knows lists and no question, joins what names one entity, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcal import UserError
from semcal.questions.alias_lists import gold_lists, read_alias_lists
from semcal.questions.named.named_datasets import read_named
from semcal.questions.wording import normalise
from semcal.semantics.class_table import UNPARSED, ClassTable
from semcal.semantics.collapsing.alias_table import coverage, pooled
from tests.conftest import data_folder, needs


def classes(*lists):
    table = pooled(lists)
    return {form: table.get(form, form) for own in lists for form in map(normalise, own)}


def test_forms_of_one_list_are_one_class():
    assert set(classes(["The Beatles", "Fab Four", "beatles!"]).values()) == {"beatles"}


def test_lists_that_begin_with_the_same_form_are_one_entity_and_so_are_lists_that_contain_each_others_first():
    assert set(classes(["two", "2", "II"], ["two", "pair"]).values()) == {"two"}
    assert set(classes(["2", "two", "II"], ["two", "2", "pair"]).values()) == {"2"}
    one_way = classes(["Lion", "Leo"], ["lithium-ion", "lion", "Li-ion"])
    assert one_way == {"lion": "lion", "leo": "lion", "lithiumion": "lithiumion", "liion": "lithiumion"}


def test_a_form_of_several_entities_is_a_class_of_its_own():
    found = classes(["Beatles", "Beetles", "Fab Four"], ["Beetle", "Beetles", "Coleoptera"])
    assert found["beetles"] == "beetles"
    assert found["fab four"] == "beatles" != found["coleoptera"] == "beetle"


_LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=8)


@given(_LISTS, st.randoms())
def test_the_table_depends_on_the_set_of_lists_alone(lists, random):
    other = [*lists, *lists[:2]]
    random.shuffle(other)
    assert pooled(other) == pooled(lists)


@given(_LISTS)
def test_a_canonical_form_is_its_own_class_and_classes_never_reach_beyond_shared_forms(lists):
    table = pooled(lists)
    assert all(table[canonical] == canonical for canonical in table.values())
    for form, canonical in table.items():
        reached, before = {form}, set()
        while reached != before:
            before = set(reached)
            reached |= {f for own in lists if before & set(own) for f in own}
        assert canonical in reached


def test_a_users_file_of_aliases(tmp_path):
    (tmp_path / "a.json").write_text('[["New York", "NYC"], ["Paris"]]')
    (tmp_path / "a.csv").write_text('New York,NYC\nParis,\n"Paris, Texas",\n')
    assert read_alias_lists(tmp_path / "a.json") == (("New York", "NYC"), ("Paris",))
    assert read_alias_lists(tmp_path / "a.csv") == (("New York", "NYC"), ("Paris",), ("Paris, Texas",))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"New York": "NYC"}', "expected a list of lists of texts, found a dict"),
        ("a.json", '[["a"], "b"]', "list 2 is 'b'; expected a list of texts"),
        ("a.json", "[[", "not JSON"),
        ("a.txt", "a", "expected aliases as .json or .csv, found .txt"),
        ("a.csv", "", "empty"),
    ],
)
def test_a_malformed_file_of_aliases_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_alias_lists(tmp_path / name)


@pytest.mark.parametrize(("kind", "file"), [("triviaqa", "triviaqa/TriviaQA.csv"), ("popqa", "popqa/popqa_1000.jsonl")])
@pytest.mark.parametrize("first", ["as listed", "at random"])
def test_on_real_lists_few_entities_have_several_classes_and_no_component_is_giant(kind, file, first):
    """The first form of each list at random imitates the Hub, where each question has its own preferred form."""
    questions = read_named(kind, needs(data_folder() / file))
    lists, rng = [q.answers for q in questions], np.random.default_rng(0)
    if first == "at random":
        lists = [tuple(rng.permutation(own).tolist()) for own in lists]
    table = pooled(lists)
    forms = {normalise(form) for own in lists for form in own}
    sizes = Counter(table.get(form, form) for form in forms)
    longest = max(len({normalise(form) for form in own}) for own in lists)
    split = {own: len({table.get(k := normalise(a), k) for a in own}) > 1 for own in lists}
    questions_split = np.mean([split[own] for own in lists])
    lists_split = np.mean(list(split.values()))
    print(  # noqa: T201
        f"{kind}, {first}: {questions_split:.1%} of {len(lists)} questions and {lists_split:.1%} of {len(split)} lists in "
        f"several classes, largest class {max(sizes.values())} forms"
    )
    assert lists_split <= 0.03  # in PopQA above all "football", of either kind
    assert max(sizes.values()) <= 1.1 * longest


def test_coverage_is_the_share_of_wrong_answers_whose_form_is_known():
    classes, counts = [["oslo", "bergen", "x", UNPARSED], ["rome"]], [[5, 3, 1, 1], [10]]
    table = ClassTable.of_answers(["a", "b"], ["a", "b"], classes, counts, [frozenset({"oslo"}), frozenset({"rome"})])
    assert coverage(table, pooled([["Oslo"], ["Bergen", "Bjørgvin"], ["Rome"]])) == pytest.approx(3 / 4)
    assert np.isnan(coverage(table.select([1]), {}))


def test_the_lists_of_a_dataset_say_nothing_of_its_questions():
    from semcal import Question

    some = [
        Question(id=i, text="?", answers=(a, a + "x"), others=((b,),)) for i, a, b in (("1", "p", "q"), ("2", "r", "p"))
    ]
    assert gold_lists(some) == gold_lists(some[::-1]) == (("p",), ("p", "px"), ("q",), ("r", "rx"))
