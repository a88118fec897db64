# ruff: noqa: F811 (fixtures of another file)
"""Servers that sample well and report badly, or that answer something else than was asked: seen, or not believed."""

from __future__ import annotations

import math
import random

import pytest

from semcal import Question, UserError
from semcal.models.stated_law import DrawnTokens
from semcal.sampling.checks import FAILED, PASSED
from semcal.semantics.collapse_answers import collapse
from tests.hostile.test_servers import Sampler, _impatient, sampled, serve  # noqa: F401

held_before = pytest.mark.held_before


# ---- truncation in the tail ----------------------------------------------------------------------------------------

RANKS = 400


def answers_under(keep, *, questions, seed):
    """Replies of a model with laws like those of real ones, of which `keep` says how many tokens are drawn."""
    rng = random.Random(seed)
    for _ in range(questions):
        power = rng.uniform(0.8, 2.6)  # Zipf's law, from flat to peaked
        weights = [rank**-power for rank in range(1, RANKS + 1)]
        p = [w / sum(weights) for w in weights]
        names = [f" w{i}" for i in rng.sample(range(5 * RANKS), RANKS)]
        kept = keep(p)
        top = {w: math.log(q) for w, q in zip(names[:5], p, strict=False)}
        choices = []
        for rank in rng.choices(range(kept), p[:kept], k=50):
            said = {"tokens": [names[rank]], "top_logprobs": [top | {names[rank]: math.log(p[rank])}]}
            choices.append({"text": names[rank], "finish_reason": "length", "logprobs": said})
        yield choices


def nucleus(share):
    return lambda p: next(i for i in range(1, RANKS + 1) if i == RANKS or sum(p[:i]) >= share)


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(nucleus(0.95), id="top-p 0.95"),
        pytest.param(nucleus(0.9), id="top-p 0.9", marks=held_before),
        pytest.param(lambda _: 40, id="top-k 40", marks=held_before),
        pytest.param(lambda p: sum(q >= 0.05 * p[0] for q in p), id="min-p 0.05", marks=held_before),
    ],
)
def test_what_is_never_drawn_from_the_tail_is_missed(keep):
    drawn = DrawnTokens()
    for choices in answers_under(keep, questions=120, seed=1):
        drawn.add("x", choices)
    check = drawn.check()
    assert check.outcome == FAILED
    assert "top-p" in check.why


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_the_same_laws_is_not_accused(seed):
    drawn = DrawnTokens()
    for choices in answers_under(len, questions=120, seed=seed):
        drawn.add("x", choices)
    assert drawn.check().outcome == PASSED


# ---- log-probabilities in part -------------------------------------------------------------------------------------


class Reporting(Sampler):
    """Lists the likeliest `top` tokens and the drawn one; log-probabilities of the first `first` tokens only."""

    def __init__(self, *, top=5, first=None, **options):
        super().__init__(**options)
        self.top, self.first = top, first

    def statement(self, p, drawn):
        listed = sorted(p, key=p.__getitem__, reverse=True)[: self.top]
        return {w: math.log(p[w]) for w in dict.fromkeys([drawn, *listed])}

    def choice(self, prompt, body):
        choice = super().choice(prompt, body)
        if self.first and choice["logprobs"] and not body.get("echo"):
            choice["logprobs"] = {name: values[: self.first] for name, values in choice["logprobs"].items()}
        return choice


@pytest.mark.long
@pytest.mark.parametrize("top", [1, 2, 3, 4])
@pytest.mark.parametrize("echo", [True, False])
def test_an_honest_server_that_lists_fewer_tokens_is_not_accused(serve, top, echo):
    model, _ = sampled(serve(Reporting(top=top, echo=echo)), questions=40)
    assert model.work.checks[0].outcome == ("not made" if top == 1 else "passed")


def test_an_honest_server_that_lists_drawn_tokens_only_is_not_checked(serve):
    model, _ = sampled(serve(Reporting(top=0)), questions=40)
    assert model.work.check.startswith("not checked: the server gives the log-probability of drawn tokens only")


@pytest.mark.parametrize("setting", ["top_k", "temperature above 1"])
def test_fewer_listed_tokens_still_show_a_setting(serve, setting):
    sampler = Reporting(setting=setting, top=2)
    with pytest.raises(UserError, match="does not sample from the model itself"):
        sampled(serve(sampler), questions=60)


@pytest.mark.parametrize(
    "how", [{"first": 1}, {"form": "hidden"}, {"form": "hidden", "first": 2}], ids=["cut", "no ends", "both"]
)
def test_part_of_an_answer_has_no_log_probability_of_the_whole(serve, how):
    _, answers = sampled(serve(Reporting(**how)), questions=6)
    stated = [a.logprob for found in answers.values() for a in found if a.finish == "stop" and a.text]
    assert stated
    assert all(logprob is None for logprob in stated)
    # Confidence by mass needs them all; it is left out rather than wrong, and nothing breaks.
    questions = [Question(id=key, text=f"What is {key}?", answers=("red",)) for key in answers]
    assert collapse(questions, list(answers.values())).masses is None


def test_whole_answers_have_the_log_probability_of_their_tokens(serve):
    _, answers = sampled(serve(Reporting()), questions=4)
    found = [a for some in answers.values() for a in some]
    assert all(a.logprob is not None for a in found)
    for some in answers.values():
        assert sum(math.exp(a.logprob) for a in some) <= 1 + 1e-9


def test_two_ways_to_a_text_have_a_probability_each(serve):
    """A stop string may end in the middle of several tokens; what remains is one text."""

    class Ends(Sampler):
        def choice(self, *_):
            end, p = self.rng.choice([("\n", 0.5), ("\n\n", 0.3), ("\n \n", 0.2)])
            ends = {"\n": math.log(0.5), "\n\n": math.log(0.3), "\n \n": math.log(0.2)}
            tops = [top | {f" {i}": -20.0 for i in range(4)} for top in ({" red": 0.0}, ends)]
            said = {"tokens": [" red", end], "token_logprobs": [0.0, math.log(p)], "top_logprobs": tops}
            return {"text": " red", "finish_reason": "stop", "logprobs": said}

    _, answers = sampled(serve(Ends(echo=False)), questions=1, stop=("\n",))
    (found,) = answers.values()
    assert {a.text for a in found} == {" red"}
    assert sum(math.exp(a.logprob) for a in found) == pytest.approx(1.0)


# ---- not the samples of the prompt ---------------------------------------------------------------------------------


class Blocks(Sampler):
    """Gives at most `most` choices per request, the same ones to the same prompt if it caches."""

    def __init__(self, most=8, caches=True, **options):
        super().__init__(**options)
        self.most, self.caches, self.cache = most, caches, {}

    def answer(self, body):
        key = body["prompt"]
        if key in self.cache and self.caches and body["max_tokens"] > 1:
            return self.cache[key]
        self.cache[key] = super().answer(body | {"n": min(self.most, body.get("n", 1))})
        return self.cache[key]


@pytest.mark.parametrize("form", ["none", "legacy"])
@pytest.mark.parametrize("most", [8, 3])
def test_replies_that_repeat_under_other_seeds_are_refused(serve, form, most):
    with pytest.raises(UserError, match=r"replies to a prompt are the same under other seeds|than stated"):
        sampled(serve(Blocks(most, form=form)))


@pytest.mark.parametrize("form", ["none", "legacy"])
def test_blocks_that_are_drawn_anew_are_not_accused(serve, form):
    model, _ = sampled(serve(Blocks(caches=False, form=form)))
    assert model.work.checks[3].outcome == PASSED


def test_one_answer_for_all_samples_is_seen_by_its_log_probabilities(serve):
    with pytest.raises(UserError, match="does not sample from the model itself"):
        sampled(serve(Blocks(1)))


def test_one_answer_for_all_samples_is_said_where_nothing_else_shows_it(serve):
    model, _ = sampled(serve(Blocks(1, form="none")))
    assert "all samples of each of 12 questions are the same" in model.work.checks[3].why


class Wrapping(Sampler):
    """Puts words around every prompt, or cuts it."""

    def __init__(self, around=(), longest=None, **options):
        super().__init__(**options)
        self.around, self.longest = around, longest

    def answer(self, body):
        words = [*self.around, *body["prompt"].split(" ")][: self.longest]
        return super().answer(body | {"prompt": " ".join(words)})


@pytest.mark.parametrize("form", ["none", "legacy"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"around": (*["red"] * 5,)}, "puts tokens around a prompt: probably a chat template or a system prompt"),
        ({"longest": 3}, "cuts prompts to a number of tokens"),
    ],
    ids=["template", "cut"],
)
def test_a_prompt_that_is_changed_is_refused(serve, form, how, message):
    with pytest.raises(UserError, match=message):
        sampled(serve(Wrapping(form=form, echo=False, **how)))


def test_a_server_that_counts_no_tokens_is_not_checked_for_it(serve):
    class Silent(Sampler):
        def answer(self, body):
            status, reply = super().answer(body)
            return status, {"choices": reply["choices"]} if "choices" in reply else reply

    model, _ = sampled(serve(Silent()))
    assert model.work.checks[4].outcome == "not made"
    assert "does not count" in model.work.checks[4].why


class Changing(Sampler):
    """Changes what it answers after sampling."""

    def __init__(self, change, **options):
        super().__init__(**options)
        self.change = change

    def choice(self, prompt, body):
        return self.change(super().choice(prompt, body))


@pytest.mark.parametrize("reason", ["content_filter", "abort", "error", None, ""])
def test_an_answer_that_was_withheld_is_no_answer(serve, reason):
    with pytest.raises(UserError, match=rf"ended an answer with finish_reason {reason!r}; expected"):
        sampled(serve(Changing(lambda c: c | {"finish_reason": reason})))


@pytest.mark.parametrize("change", [str.upper, str.title], ids=["upper", "title"])
def test_text_in_another_case_than_its_tokens_is_refused(serve, change):
    with pytest.raises(UserError, match="changes upper and lower case"):
        sampled(serve(Changing(lambda c: c | {"text": change(c["text"])})))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda c: c | {"text": c["text"].strip()}, id="stripped"),
        pytest.param(lambda c: c | {"index": 7}, id="numbered otherwise"),
    ],
)
def test_what_changes_no_meaning_is_taken(serve, change):
    model, answers = sampled(serve(Changing(change)))
    assert model.work.check.startswith("agrees")
    assert all(a.logprob is not None for found in answers.values() for a in found)


@pytest.mark.held_before
def test_choices_in_another_order_are_the_same_answers(serve):
    class Shuffled(Sampler):
        def answer(self, body):
            status, reply = super().answer(body)
            random.Random(0).shuffle(reply.get("choices", []))
            return status, reply

    model, _ = sampled(serve(Shuffled()))
    assert model.work.check.startswith("agrees")


def test_another_model_in_the_middle_of_a_run_is_refused(serve):
    class Router(Sampler):
        def answer(self, body):
            status, reply = super().answer(body)
            return status, reply | {"model": f"m-{len(self.bodies) // 6}"}

    with pytest.raises(UserError, match="answers as 'm-0' and as 'm-1'; one run is of one model"):
        sampled(serve(Router()))


def test_the_model_that_answered_is_recorded(serve):
    class Named(Sampler):
        def answer(self, body):
            status, reply = super().answer(body)
            return status, reply | {"model": "m-2026"}

    model, _ = sampled(serve(Named()))
    assert model.work.answered_by == "m-2026"


def test_samples_are_counted_where_the_server_keeps_to_itself_how_many_it_sends(serve):
    class Many(Sampler):
        def answer(self, body):
            return super().answer(body | {"n": body.get("n", 1) + 3})

    _, answers = sampled(serve(Many()), m=10)
    assert all(sum(a.count for a in found) == 10 for found in answers.values())
