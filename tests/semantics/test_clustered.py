"""The composition extract → canonicalise → cluster, a user's own B, and the contract they all keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcal import Question, UserError
from semcal.semantics.agreement import adjusted_rand
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.alias_table import pooled
from semcal.semantics.collapsing.clustered import Clustered
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.custom import check_contract, load_custom, unreadable_gold
from semcal.semantics.collapsing.exact_match import Choice, ExactMatch
from semcal.semantics.collapsing.numeric import Numeric
from semcal.semantics.collapsing.surface import KthWord

Q = Question(
    id="q",
    text="Which town?",
    answers=("New York", "NYC"),
    others=(("Albany",),),
    incorrect=("Boston", "Bronx"),
    choices=("New York", "Boston"),
)
OTHER = Question(id="o", text="And which?", answers=("Rome",), choices=("Rome", "Boston"))


class ByInitial:
    """Phrases that begin with the same letter mean the same; one that begins with x is no answer."""

    name = "by-initial/1"

    def __init__(self):
        self.asked = []

    def cluster(self, questions, phrases):  # noqa: ARG002
        self.asked += [list(own) for own in phrases]
        return [[-1 if p.lower()[0] == "x" else ord(p.lower()[0]) for p in own] for own in phrases]

    def assign(self, questions, classes, phrases):  # noqa: ARG002
        by_letter = [{m.lower()[0]: label for label, own in known.items() for m in own} for known in classes]
        return [[known.get(p.lower()[0]) for p in own] for known, own in zip(by_letter, phrases, strict=True)]


def test_known_aliases_are_joined_before_anything_is_clustered_and_distinct_phrases_are_asked_once():
    cluster = ByInitial()
    texts = ["NYC", "the New York", "new york!", "Nashville", "Boston", "xyz", ""]
    (found,) = collapse_blind(Clustered(cluster, pooled([Q.answers])), [Q], [texts], "concise")
    assert found.classes == ("new york",) * 4 + ("boston", UNPARSED, UNPARSED)
    assert found.gold == {"new york", "albany"}
    (asked,) = cluster.asked
    assert asked == ["Boston", "Nashville", "NYC", "xyz"]  # the references were not there


def test_a_class_is_correct_where_more_of_its_references_are_right_than_wrong():
    (found,) = collapse_blind(Clustered(ByInitial()), [Q], [["Albany", "Boston", "New York"]], "concise")
    assert found.gold == {"albany", "new york"}  # NYC begins like New York, Bronx like Boston
    wrong = Question(id="w", text="?", answers=("Basel",), incorrect=("Boston", "Bronx"))
    (found,) = collapse_blind(Clustered(ByInitial()), [wrong], [["Basel"]], "concise")
    assert found.gold == frozenset()  # two wrong references share the class of the right one


def test_several_golds_of_a_pointwise_b():
    (found,) = collapse_blind(ExactMatch(), [Q], [["Albany", "NYC", "Boston"]], "concise")
    assert found.classes == ("albany", "nyc", "boston")
    assert found.gold == {"albany", "nyc", "new york"}


EVERY = [
    ExactMatch(),
    ExactMatch({"NYC": "ny", "Boston": "b"}),
    Numeric(),
    Choice(),
    KthWord(1),
    Clustered(ByInitial()),
]


@settings(deadline=None)  # math-verify is slow at first
@given(st.lists(st.text(max_size=12), max_size=6, unique=True), st.sampled_from(["concise", "sentence", "cot"]))
@pytest.mark.parametrize("b", EVERY, ids=lambda b: b.name)
def test_every_b_keeps_the_contract(b, texts, style):
    check_contract(b, [Q], [texts], style)


@pytest.mark.parametrize("b", EVERY, ids=lambda b: b.name)
def test_every_b_reads_its_gold(b):
    assert unreadable_gold(b, [Q]) == []


def write_b(tmp_path, monkeypatch, body):
    (tmp_path / "my_b.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_b", raising=False)


def test_a_users_own_b_by_import_path(tmp_path, monkeypatch):
    write_b(tmp_path, monkeypatch, "def first(question, text, style):\n    return text.strip()[:1].lower() or None\n")
    b = load_custom("my_b:first")
    (found,) = collapse_blind(b, [Q], [["nice", "No", "", "zzz"]], "concise")
    assert found.classes == ("n", "n", UNPARSED, "z")
    assert found.gold == {"n", "a"}
    assert b.name.startswith("custom(my_b:first)/")
    check_contract(b, [Q], [["nice", "zzz"]], "concise")


@pytest.mark.parametrize("path", ["my_b", "my_b:second", "no_such_module:f", "my_b:NUMBER"])
def test_an_import_path_that_leads_nowhere_is_one_line(tmp_path, monkeypatch, path):
    write_b(tmp_path, monkeypatch, "NUMBER = 1\n")
    with pytest.raises(UserError, match="semantics"):
        load_custom(path)


def test_a_b_that_breaks_the_contract_is_named(tmp_path, monkeypatch):
    write_b(
        tmp_path,
        monkeypatch,
        "from itertools import count\nC = count()\n"
        "def dice(question, text, style):\n    return str(next(C))\n"
        "def number(question, text, style):\n    return 7\n"
        "def right(question, text, style):\n    return 'yes' if text in question.answers else text\n"
        "class Remembers:\n"  # what it was shown as references, and joins it in its next partition
        "    name, shown = 'remembers', {}\n"
        "    def partition(self, questions, texts, style):\n"
        "        return [tuple('seen' if t in self.shown.get(q.id, ()) else t for t in own)\n"
        "                for q, own in zip(questions, texts)]\n"
        "    def match(self, questions, partitions, references, style):\n"
        "        self.shown.update((q.id, own) for q, own in zip(questions, references))\n"
        "        return [tuple(own) for own in references]\n"
        "REMEMBERS = Remembers()\n",
    )
    with pytest.raises(UserError, match="deterministic"):
        check_contract(load_custom("my_b:dice"), [Q], [["a"]], "concise")
    with pytest.raises(UserError, match="every answer needs a class, as text"):
        check_contract(load_custom("my_b:number"), [Q], [["a"]], "concise")
    with pytest.raises(UserError, match=r"reads question\.answers, but B must not see which answer is right"):
        check_contract(load_custom("my_b:right"), [Q], [["a"]], "concise")
    with pytest.raises(UserError, match="classes depend on the gold answers"):
        check_contract(load_custom("my_b:REMEMBERS"), [Q, OTHER], [["NYC", "Rome"]] * 2, "concise")


def test_adjusted_rand_weighs_answers_by_their_samples():
    assert adjusted_rand(["x", "x", "y"], ["1", "1", "2"], [3, 2, 5]) == 1
    assert adjusted_rand(["x"], ["1"], [50]) == 1
    rare = adjusted_rand(["x", "y", "y"], ["1", "2", "3"], [25, 24, 1])
    often = adjusted_rand(["x", "y", "y"], ["1", "2", "3"], [25, 13, 12])
    assert 0 < often < rare < 1
    with pytest.raises(ValueError, match="lengths"):
        adjusted_rand(["x"], ["1", "2"], [1])
