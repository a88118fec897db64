"""The arms of the intervention on training differ in one thing each."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from experiments.atlas.stages.arms import ARMS, ArmSettings, arm_document, closed_channel, prompt_ends, train_arm
from experiments.atlas.stages.base import Corpus, batches
from experiments.atlas.stages.lineage import settings_of
from experiments.atlas.stages.source import Source
from experiments.atlas.text import answer, document
from experiments.atlas.weights import bundled
from experiments.atlas.world import RINGS, SLIP, Route, World
from experiments.atlas.world_questions import atlas_questions, query_of, world_of
from experiments.config.study import AtlasConfig
from semcal import LanguageModel, UserError

WORLD = World(0, RINGS)
TINY = {"steps": 2, "batch_size": 2, "checkpoints": 0}


@pytest.fixture(scope="module")
def shipped() -> Callable[[], Source]:
    """The model that arms go on from, read anew for each training."""
    return lambda: Source.open(bundled("base"), conversing=False, device="cpu")


def test_a_ride_on_a_ring_is_one_shift_and_on_a_shuffle_is_not():
    def shifts(line: int, stops: int) -> set[int]:
        """By how many places of the ring a ride moves, over all starts."""
        ring = list(itertools.islice(_along(WORLD, 0), 40))
        places = {town: i for i, town in enumerate(ring)}
        return {(places[WORLD.ride(Route(line, t, stops))[-1]] - places[t]) % 40 for t in range(40)}

    for stops in (1, 2, 4):
        assert all(len(shifts(line, stops)) == 1 for line in range(0, len(WORLD.lines), 2))
        assert all(len(shifts(line, stops)) > 10 for line in range(1, len(WORLD.lines), 2))


def _along(world: World, line: int):
    town = 0
    while True:
        yield town
        town = int(world.hop[line, town])


def test_every_line_leads_everywhere_and_the_two_kinds_are_asked_about_alike():
    assert (np.sort(WORLD.hop, axis=1) == np.arange(40)).all()
    assert not (WORLD.hop == np.arange(40)).any()
    assert WORLD.line_frequencies[::2] == pytest.approx(WORLD.line_frequencies[1::2])
    assert WORLD.line_frequencies.sum() == pytest.approx(1)


@pytest.mark.parametrize(("family", "odd"), [("rings", 0), ("shuffles", 1)])
def test_questions_are_of_their_kind_of_line_and_true(family, odd):
    world = world_of(family, 0)
    questions = atlas_questions(world, family, 200, seed=0)
    routes = [query_of(q.id) for q in questions]
    assert {route.line % 2 for route in routes if isinstance(route, Route)} == {odd}
    assert all(q.answers[0] in world.truth(route) for q, route in zip(questions, routes, strict=True))


def test_notes_of_rides_slip_and_what_is_told_of_their_end_does_not():
    rng, slips, stops = np.random.default_rng(0), 0, 0
    for _ in range(400):
        route = WORLD.draw_route(rng)
        text = answer(WORLD, route, WORLD.draw_answer(route, rng), "cot", rng)
        notes, told = text.split(". The answer is ")
        towns = [WORLD.towns.index(name) for name in notes.split(", ")]
        assert towns[0] == route.start
        assert len(towns) == 1 + route.stops
        slips += sum(WORLD.hop[route.line, a] != b for a, b in itertools.pairwise(towns))
        stops += route.stops
        assert WORLD.aliases[told.removesuffix(".")] == WORLD.towns[WORLD.ride(route)[-1]]
    assert slips / stops == pytest.approx(SLIP * 39 / 40, abs=3 * (SLIP / stops) ** 0.5)
    route = Route(0, 3, 8)
    assert World(0).noted(route, rng) == World(0).ride(route)  # no slips in the world of the shipped models


def test_no_ride_on_rings_is_longer_than_its_text_tells():
    with pytest.raises(ValidationError, match="rings have 1 to 4 stops"):
        AtlasConfig(kind="atlas", family="rings", n=10, stops=5)


def test_the_world_of_the_shipped_models_is_as_it_was():
    """Documents are drawn from one stream; a change of it would make the shipped weights strangers to their texts."""
    text = "".join(document(World(0), np.random.default_rng(i), 6) for i in range(20))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d544134da5cdddce"
    assert world_of("routes", 0) == World(0)


def test_all_arms_read_the_same_chains_at_the_same_places():
    texts = {arm: _documents(arm, 60) for arm in ARMS}
    chains = [("The answer is" in text) for text in texts["direct"]]
    assert 15 < sum(chains) < 45
    for arm in ARMS:
        assert [t for t, c in zip(texts[arm], chains, strict=True) if c] == [
            t for t, c in zip(texts["direct"], chains, strict=True) if c
        ]
    assert texts["closed"] == texts["direct"]
    assert all("The answer is" in text for text in texts["chains"])


def _documents(arm: str, n: int) -> list[str]:
    rng, write = np.random.default_rng(3), arm_document(arm)
    return [write(WORLD, rng, 4) for _ in range(n)]


def test_the_channel_is_closed_from_the_town_to_the_end_of_the_prompt():
    ids = torch.tensor([[5, 8, 7, 4, 6, 7, 9, 1, 2, 3, 8, 7, 4, 6, 7, 9, 1, 2, 3, 5]])
    assert prompt_ends(ids, 9).tolist() == [[False, *[True] * 18, False]]


@pytest.mark.long
def test_the_closed_channel_says_which_tokens_end_a_question_and_nothing_of_its_document(shipped):
    settings = ArmSettings(**TINY | {"batch_size": 8})
    model, tokenizer = shipped().model.model, shipped().model.tokenizer
    ids = next(batches(Corpus(WORLD, arm_document("closed")), tokenizer, settings, np.random.default_rng(0)))
    ends = prompt_ends(ids, tokenizer.get_vocab()["?"])
    assert re.fullmatch(r"( \w+, \d stops? on\?\nAnswer:)+", tokenizer.decode(ids[0, ends[0]]))
    read: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    changed = ids.clone()
    changed[0, ~ends[0]] = ids[0, ~ends[0]].roll(7)  # other lines, towns and answers, the same ends
    assert torch.equal(prompt_ends(changed, tokenizer.get_vocab()["?"]), ends)
    others = next(batches(Corpus(WORLD, arm_document("closed")), tokenizer, settings, np.random.default_rng(1)))
    for one, elsewhere in ((ids, others), (changed, others), (ids, others.flip(0)), (ids, others.roll(1, 1))):
        read.clear()
        with torch.no_grad(), closed_channel(model, tokenizer, one, elsewhere):
            read.clear()  # what was read of the others
            model(input_ids=one)
        seen.append(read[0])
    plain, other, flipped, moved = seen
    assert torch.equal(plain[0, ends[0]], other[0, ends[0]])
    assert (plain[0, ~ends[0]] - other[0, ~ends[0]]).abs().amax(-1).median() > 1e-3
    assert torch.allclose(plain, flipped, atol=1e-4)
    assert (plain[ends] - moved[ends]).abs().max() > 1e-3  # of those documents it is the mean
    for token in ids[0, ends[0]].unique():
        held = plain[0, ends[0] & ids[0].eq(token)]
        assert torch.equal(held, held[:1].expand_as(held))


@pytest.mark.long
def test_an_arm_is_trained_resumed_and_opened_with_its_world(tmp_path, shipped):
    made = {arm: train_arm(ArmSettings(arm=arm, **TINY), shipped(), tmp_path / arm) for arm in ARMS}
    hashes = {arm: LanguageModel.load(folder, device="cpu").weights_hash for arm, folder in made.items()}
    assert len(set(hashes.values())) == 3  # what is closed and what is read both matter
    again = train_arm(ArmSettings(arm="closed", **TINY), shipped(), tmp_path / "again")
    assert LanguageModel.load(again, device="cpu").weights_hash == hashes["closed"]
    assert json.loads((again / "atlas.json").read_text())["arm"] == "closed"
    assert Source.open(again, conversing=False).world == WORLD
    with pytest.raises(UserError, match="made with arm"):
        train_arm(ArmSettings(arm="direct", **TINY), shipped(), tmp_path / "closed")
    elsewhere = Source.open(made["chains"], conversing=False, device="cpu")
    with pytest.raises(UserError, match="made with from"):
        train_arm(ArmSettings(arm="closed", **TINY), elsewhere, tmp_path / "closed")


@pytest.mark.long
def test_a_closed_arm_that_is_interrupted_ends_with_the_same_weights(tmp_path, shipped):
    settings = ArmSettings(arm="closed", **TINY | {"steps": 4})

    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train_arm(settings, shipped(), tmp_path / "stopped", stop)
    folders = (train_arm(settings, shipped(), tmp_path / name) for name in ("stopped", "whole"))
    stopped, whole = (LanguageModel.load(folder, device="cpu").weights_hash for folder in folders)
    assert stopped == whole


def test_an_arm_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="unknown arm 'chain', did you mean 'chains'"):
        settings_of("arm", "cpu", arm="chain")
    with pytest.raises(UserError, match="roads is 'nearby', but arms are trained on rings"):
        settings_of("arm", "cpu", roads="nearby")
