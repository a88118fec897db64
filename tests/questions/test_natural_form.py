"""Gold is shown as a reader would write it, not in the capitals of an alias list."""

import pytest

from semcal.questions.named.named_datasets import read_named
from semcal.questions.wording import natural_form
from tests.conftest import data_folder, needs


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        (("THALIA", "Thalia (album)", "Thalia", "Θάλεια"), "Thalia"),
        (("KIX", "Kix", "Kix (cereal)"), "Kix"),
        (("ARES", "Ares (disambiguation)"), "Ares"),  # only as a part of another alias
        (("KING CRIMSON", "King crimson", "King Crimson"), "King Crimson"),
        (("GEORGE IV", "George iv", "George IV"), "George IV"),
        (("DELAWARE", "DelawarE", "Delaware"), "Delaware"),
        (("'TRAINSPOTTING'", "Trainspotting"), "Trainspotting"),
        (("DR HOOK", "Dr. Hook"), "Dr. Hook"),
    ],
)
def test_capitals_give_way_to_the_case_of_the_other_aliases(answers, shown):
    assert natural_form(answers) == shown


@pytest.mark.parametrize(
    "answers",
    [
        ("LSD", "Lsd", "LSD 25", "LSD tablet"),  # an abbreviation that most aliases write in capitals
        ("NBA", "National Basketball Association"),
        ("IS", "Is", "Is (disambiguation)"),  # two letters
        ("PULSAR", "Yukon Optics"),  # no other case to go by
        ("KING ARTHUR", "King, Arthur"),
        ("Paris", "PARIS", "paris"),
        ("1914",),
        ("東", "East"),
    ],
)
def test_other_answers_stay_as_they_are(answers):
    assert natural_form(answers) == answers[0]


def test_on_real_alias_lists_only_capitals_change_and_only_to_what_an_alias_says():
    questions = read_named("triviaqa", needs(data_folder() / "triviaqa" / "TriviaQA.csv"))
    changed = [(q.answers, natural_form(q.answers)) for q in questions if natural_form(q.answers) != q.answers[0]]
    assert all(answers[0].isupper() and not shown.isupper() for answers, shown in changed)
    assert all(any(shown in alias for alias in answers[1:]) for answers, shown in changed)
    capitals = sum(q.answers[0].isupper() and sum(map(str.isalpha, q.answers[0])) > 2 for q in questions)
    assert capitals > 400
    assert len(changed) > 0.85 * capitals
