"""The composition extract → canonicalise → cluster, a user's own B, and the contract they all keep."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcal import Question, UserError
from semcal.semantics.agreement import adjusted_rand
from semcal.semantics.collapsing.clustered import Clustered
from semcal.semantics.collapsing.collapse import UNPARSED
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


class ByInitial:
    """Phrases that begin with the same letter mean the same; one that begins with x is no answer."""

    name = "by-initial/1"

    def __init__(self):
        self.asked = []

    def cluster(self, questions, phrases):  # noqa: ARG002
        self.asked += [list(its) for its in phrases]
        return [[-1 if p.lower()[0] == "x" else ord(p.lower()[0]) for p in its] for its in phrases]


def test_known_aliases_are_joined_before_anything_is_clustered_and_distinct_phrases_are_asked_once():
    cluster = ByInitial()
    texts = ["NYC", "the New York", "new york!", "Nashville", "Boston", "xyz", ""]
    (found,) = Clustered(cluster).collapse([Q], [texts], "concise")
    assert found.classes == ("new york",) * 4 + ("boston", UNPARSED, UNPARSED)
    (asked,) = cluster.asked
    assert len(asked) == len({p.lower() for p in asked}) == 6  # four references, Nashville, xyz


def test_a_class_is_correct_where_more_of_its_references_are_right_than_wrong():
    (found,) = Clustered(ByInitial()).collapse([Q], [["Albany", "Boston", "New York"]], "concise")
    assert found.gold == {"albany", "new york"}
    wrong = Question(id="w", text="?", answers=("Basel",), incorrect=("Boston", "Bronx"))
    (found,) = Clustered(ByInitial()).collapse([wrong], [["Basel"]], "concise")
    assert found.gold == frozenset()  # two wrong references share the class of the right one


def test_several_golds_of_a_pointwise_b():
    (found,) = ExactMatch().collapse([Q], [["Albany", "NYC", "Boston"]], "concise")
    assert found.classes == ("albany", "new york", "boston")
    assert found.gold == {"albany", "new york"}


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
    (found,) = b.collapse([Q], [["nice", "No", "", "zzz"]], "concise")
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
        "def number(question, text, style):\n    return 7\n",
    )
    with pytest.raises(UserError, match="deterministic"):
        check_contract(load_custom("my_b:dice"), [Q], [["a"]], "concise")
    with pytest.raises(UserError, match="every answer needs a class, as text"):
        check_contract(load_custom("my_b:number"), [Q], [["a"]], "concise")


def test_adjusted_rand_weighs_answers_by_their_samples():
    assert adjusted_rand(["x", "x", "y"], ["1", "1", "2"], [3, 2, 5]) == 1
    assert adjusted_rand(["x"], ["1"], [50]) == 1
    rare = adjusted_rand(["x", "y", "y"], ["1", "2", "3"], [25, 24, 1])
    often = adjusted_rand(["x", "y", "y"], ["1", "2", "3"], [25, 13, 12])
    assert 0 < often < rare < 1
    with pytest.raises(ValueError, match="lengths"):
        adjusted_rand(["x"], ["1", "2"], [1])
