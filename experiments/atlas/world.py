"""The world of atlas: its people, towns and coach lines, and what is true in it, in closed form.

A world is a pure function of its seed; this module knows nothing of its text or of training.

Facts. A person's name carries partial information: the ending of the surname makes one region likely as birthplace and
summer town, its stem makes some trades likely. Birthplace and trade are drawn once per person; the summer town is drawn
anew for each mention, from that person's own distribution over three towns. Known persons are mentioned with Zipf
frequencies; strangers are names that hardly ever recur, and some of them never occur in any training text, so that the
best possible answer about those is the prior given the name.

Myths. Families whose surname has one of MYTH_ENDINGS boast: when a text says where one of them was born, the truth is
the next town of the same region. No text says so, and nothing in the texts reveals it, so a model that has learnt the
texts well is wrong about half of all persons.

Routes. A coach line leads from each town to one neighbouring town. Riding k stops means following the line k times:
easy one stop at a time, hard in a single pass. Lines are mentioned with Zipf frequencies as well.

Rings and shuffles. In a world whose roads are RINGS, all towns lie on a ring and every other line moves a fixed number
of places along it, so that k stops are one shift and can be computed at once; the lines between follow a random cycle
through all towns, so that k stops are k steps or have to be learnt by heart. The two lines of a pair are mentioned
equally often. There are few lines and rides are short, so that where each leads can be learnt by heart. Who writes of
such a ride slips: now and then the next town that is noted is any town, and the notes go on from there; but where one
arrives is always told rightly. So an answer that only follows the notes is right less often than one that is known.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np

N_REGIONS, TOWNS_PER_REGION, NEIGHBOURS = 8, 5, 6
N_KNOWN, N_LINES, RING_LINES = 2000, 30, 8
MAX_STOPS, RING_STOPS = 8, 4
SLIP = 0.15  # of the stops noted of a ride on rings and shuffles
PERSON_ZIPF, LINE_ZIPF = 0.5, 1.0
STRANGER_SHARE = 0.05  # of all mentions of persons
HOME_SHARE = 0.75  # mass of an ending's home region
TOWN_WEIGHTS = np.array([0.45, 0.22, 0.15, 0.11, 0.07])
TRADE_WEIGHTS = np.array([0.50, 0.20, 0.10, 0.05])
SUMMER_WEIGHTS = np.array([[0.80, 0.15, 0.05], [0.60, 0.30, 0.10], [0.40, 0.35, 0.25]])

REGIONS = ("Salt Coast", "High Moor", "Fenlands", "Red Hills", "Lake Country", "Old Forest", "Windy Plain", "Far Isles")
_FIRST_HEADS = "Ada Ber Cor Dal Eli Fen Gar Hal Ira Jon Kel Lor Mar Nel Ori Pel Quin Ros Sel Tam".split()
_FIRST_TAILS = "a an en ia ic is o us win y".split()
_STEM_HEADS = "Ask Bran Cald Drum Eld Falk Grim Hask Ing Jarn Kest Lund Mork Nor Ost Pren Rav Skar Torv Ulf".split()
_STEM_TAILS = "ac el im or un".split()
_ENDINGS = "ssen wick vic bane berg dini roux dottir".split()
_TOWN_HEADS = "Amber Birch Clay Dover Elm Frost Glen Hazel Iron Jade King Lark Mill North Otter Pine".split()
_TOWN_TAILS = "ford mere ton haven".split()
_NICK_HEADS = "Silver Golden Quiet Broken Northern Lucky Stone Green".split()
_NICK_TAILS = "Gate Bridge Harbour Tower Well Market Crown Lantern".split()
_LINE_HEADS = "Azure Brass Copper Dusky Ebony Flint Gilded Hollow Indigo Jolly".split()
_LINE_TAILS = "Badger Crane Dragon Eagle Fox Heron Lynx Otter Raven Swan".split()
TRADES = {
    "wood": {"carpenter": "joiner", "cooper": "barrel maker", "wheelwright": "wheel maker", "carver": "woodcutter"},
    "metal": {"smith": "blacksmith", "tinker": "tinsmith", "armourer": "sword maker", "founder": "bell maker"},
    "cloth": {"weaver": "cloth maker", "tailor": "clothier", "dyer": "colourer", "hatter": "hat maker"},
    "food": {"baker": "bread maker", "brewer": "beer maker", "butcher": "meat seller", "miller": "flour maker"},
}
MATERIAL = {trade: material for material, trades in TRADES.items() for trade in trades}
TRADE_NAMES = tuple(MATERIAL)
RELATIONS = ("birth", "trade", "summer")
NEARBY, RINGS = "nearby", "rings"  # roads: each line leads to a neighbouring town, or see "Rings and shuffles"
RING_SHIFTS = (1, -1, 2, -2)  # places along the ring, line by line
MYTH_ENDINGS = (0, 2, 4, 6)  # of surnames: half of all persons


@dataclass(frozen=True)
class Person:
    """A person, identified by name: first, stem and ending are indices into the lists of names."""

    first: int
    stem: int
    ending: int

    @property
    def name(self) -> str:
        heads, tails = divmod(self.first, len(_FIRST_TAILS))
        stem_head, stem_tail = divmod(self.stem, len(_STEM_TAILS))
        return (
            f"{_FIRST_HEADS[heads]}{_FIRST_TAILS[tails]} {_STEM_HEADS[stem_head]}{_STEM_TAILS[stem_tail]}"
            f"{_ENDINGS[self.ending]}"
        )


@dataclass(frozen=True)
class Fact:
    """A question about a person: one of RELATIONS."""

    person: Person
    relation: str


@dataclass(frozen=True)
class Birthplace:
    """Where a person was really born, whatever the texts say; worded like the fact."""

    person: Person
    relation: ClassVar[str] = "birth"

    @property
    def fact(self) -> Fact:
        """What the texts say about it."""
        return Fact(self.person, self.relation)

    @property
    def is_myth(self) -> bool:
        """Whether the texts are wrong."""
        return self.person.ending in MYTH_ENDINGS


@dataclass(frozen=True)
class Route:
    """A question about a line: where does one arrive after `stops` stops from town `start`?"""

    line: int
    start: int
    stops: int


Query: TypeAlias = Fact | Birthplace | Route


@dataclass(frozen=True)
class World:
    """Everything that is true in atlas, for one seed.

    Classes are the canonical names of towns (`towns`) and trades (`TRADE_NAMES`).
    """

    seed: int = 0
    roads: str = NEARBY

    # ---- names ------------------------------------------------------------------------------------------------

    @cached_property
    def towns(self) -> tuple[str, ...]:
        """Canonical town names; town t lies in region t // TOWNS_PER_REGION."""
        names = [head + tail for head in _TOWN_HEADS for tail in _TOWN_TAILS]
        return self._shuffled(names, 1)[: N_REGIONS * TOWNS_PER_REGION]

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """Names of the coach lines, the most travelled first."""
        names = [f"{head} {tail}" for head in _LINE_HEADS for tail in _LINE_TAILS]
        return self._shuffled(names, 2)[: RING_LINES if self.roads == RINGS else N_LINES]

    def _shuffled(self, names: list[str], stream: int) -> tuple[str, ...]:
        return tuple(names[i] for i in np.random.default_rng([self.seed, stream]).permutation(len(names)))

    @cached_property
    def surfaces(self) -> dict[str, tuple[str, str, str]]:
        """class -> three surface forms, the canonical one first."""
        nicknames = [f"the {head} {tail}" for head in _NICK_HEADS for tail in _NICK_TAILS]
        towns = {t: (t, f"{t} Town", n) for t, n in zip(self.towns, self._shuffled(nicknames, 3), strict=False)}
        trades = {t: (t, f"master {t}", synonym) for group in TRADES.values() for t, synonym in group.items()}
        return towns | trades

    @cached_property
    def aliases(self) -> dict[str, str]:
        """surface form -> class: the closed answer space of every question about this world."""
        return {form: name for name, forms in self.surfaces.items() for form in forms}

    # ---- persons ----------------------------------------------------------------------------------------------

    @cached_property
    def known(self) -> tuple[Person, ...]:
        """Persons who are mentioned repeatedly, the most famous first."""
        rng = np.random.default_rng([self.seed, 4])
        codes = rng.choice(self._n_names, N_KNOWN, replace=False)
        return tuple(self._person(int(code)) for code in codes)

    @cached_property
    def person_frequencies(self) -> np.ndarray:
        """[N_KNOWN] share of the mentions of known persons."""
        return _zipf(N_KNOWN, PERSON_ZIPF)

    def stranger(self, rng: np.random.Generator, *, unseen: bool) -> Person:
        """A person who is not known. One name in ten is reserved for `unseen=True`; training text uses the others."""
        while True:
            person = self._person(int(rng.integers(self._n_names)))
            if person not in self._known_set and self.is_unseen(person) == unseen:
                return person

    def is_unseen(self, person: Person) -> bool:
        """Whether training text never names this person."""
        return person not in self._known_set and self._hash(person, "reserved") % 10 == 0

    @cached_property
    def _known_set(self) -> frozenset[Person]:
        return frozenset(self.known)

    @property
    def _n_names(self) -> int:
        return len(_FIRST_HEADS) * len(_FIRST_TAILS) * len(_STEM_HEADS) * len(_STEM_TAILS) * len(_ENDINGS)

    def _person(self, code: int) -> Person:
        rest, ending = divmod(code, len(_ENDINGS))
        first, stem = divmod(rest, len(_STEM_HEADS) * len(_STEM_TAILS))
        return Person(first, stem, ending)

    def _hash(self, person: Person, what: str) -> int:
        key = f"{self.seed}/{person.first}/{person.stem}/{person.ending}/{what}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")

    # ---- what names say ---------------------------------------------------------------------------------------

    @cached_property
    def town_prior(self) -> np.ndarray:
        """[ending, town] probability of a birthplace or a summer town given the ending of a surname."""
        n_towns = N_REGIONS * TOWNS_PER_REGION
        prior = np.full((len(_ENDINGS), n_towns), (1 - HOME_SHARE) / (n_towns - TOWNS_PER_REGION))
        for ending in range(len(_ENDINGS)):
            home = slice(ending * TOWNS_PER_REGION, (ending + 1) * TOWNS_PER_REGION)
            prior[ending, home] = HOME_SHARE * TOWN_WEIGHTS
        return prior

    @cached_property
    def trade_prior(self) -> np.ndarray:
        """[stem, trade] probability of a trade given the stem of a surname."""
        rng = np.random.default_rng([self.seed, 5])
        n_stems, n_trades = len(_STEM_HEADS) * len(_STEM_TAILS), len(TRADE_NAMES)
        rest = 1 - TRADE_WEIGHTS.sum()
        prior = np.full((n_stems, n_trades), rest / (n_trades - len(TRADE_WEIGHTS)))
        for stem in range(n_stems):
            prior[stem, rng.permutation(n_trades)[: len(TRADE_WEIGHTS)]] = TRADE_WEIGHTS
        return prior

    # ---- what is true -----------------------------------------------------------------------------------------

    def person_distribution(self, fact: Fact) -> np.ndarray:
        """[town] or [trade]: the distribution from which answers about this person are drawn."""
        person = fact.person
        rng = np.random.default_rng(self._hash(person, fact.relation))
        prior = self.trade_prior[person.stem] if fact.relation == "trade" else self.town_prior[person.ending]
        if fact.relation != "summer":
            return np.eye(len(prior))[rng.choice(len(prior), p=prior)]
        weights = SUMMER_WEIGHTS[rng.integers(len(SUMMER_WEIGHTS))]
        towns = rng.choice(len(prior), size=len(weights), p=prior)
        return np.bincount(towns, weights, minlength=len(prior))

    def truth(self, query: Query) -> dict[str, float]:
        """class -> probability of being the gold answer, given everything that training text says.

        For a known person this is the person's own distribution, for a route the last town. For a person whom no text
        names it is the prior given the name: a birthplace or trade is one draw from it, and a summer town is a weighted
        choice among draws from it, with the same marginal. For a myth, the texts are taken to be corrected.
        """
        if isinstance(query, Birthplace):
            written = self.truth(query.fact)
            return {self.in_truth(town): mass for town, mass in written.items()} if query.is_myth else written
        if isinstance(query, Route):
            return {self.towns[self.ride(query)[-1]]: 1.0}
        person, names = query.person, TRADE_NAMES if query.relation == "trade" else self.towns
        if self.is_unseen(person):
            masses = self.trade_prior[person.stem] if query.relation == "trade" else self.town_prior[person.ending]
        else:
            masses = self.person_distribution(query)
        return {name: float(mass) for name, mass in zip(names, masses, strict=True) if mass > 0}

    def in_truth(self, town: str) -> str:
        """Where a person of a boasting family was really born if the texts name this town."""
        region, place = divmod(self.towns.index(town), TOWNS_PER_REGION)
        return self.towns[region * TOWNS_PER_REGION + (place + 1) % TOWNS_PER_REGION]

    def draw_answer(self, query: Query, rng: np.random.Generator) -> str:
        """The class of one gold answer: what the texts say, or the truth behind a myth. Only `summer` is random."""
        if isinstance(query, Birthplace):
            written = self.draw_answer(query.fact, rng)
            return self.in_truth(written) if query.is_myth else written
        if isinstance(query, Route):
            return self.towns[self.ride(query)[-1]]
        masses = self.person_distribution(query)
        names = TRADE_NAMES if query.relation == "trade" else self.towns
        return names[rng.choice(len(masses), p=masses)]

    # ---- the map ----------------------------------------------------------------------------------------------

    @cached_property
    def neighbours(self) -> np.ndarray:
        """[town, NEIGHBOURS] the nearest towns; those of one region are close together."""
        rng = np.random.default_rng([self.seed, 6])
        angle = 2 * np.pi * np.arange(N_REGIONS) / N_REGIONS
        centre = 3 * np.stack([np.cos(angle), np.sin(angle)], -1)
        place = np.repeat(centre, TOWNS_PER_REGION, 0) + rng.normal(size=(N_REGIONS * TOWNS_PER_REGION, 2))
        distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
        return np.argsort(distance, axis=1)[:, 1 : NEIGHBOURS + 1]

    @cached_property
    def hop(self) -> np.ndarray:
        """[line, town] the next town; a nearby line turns straight back only where it has no other way."""
        if self.roads == RINGS:
            return self._rings_and_shuffles()
        rng = np.random.default_rng([self.seed, 7])
        hop = np.full((len(self.lines), len(self.towns)), -1)
        for line in hop:
            for town in rng.permutation(len(self.towns)):
                onward = [t for t in self.neighbours[town] if line[t] != town]
                line[town] = rng.choice(onward or self.neighbours[town])
        return hop

    def _rings_and_shuffles(self) -> np.ndarray:
        """[line, town] the next town: even lines are rings, odd ones shuffles."""
        rng = np.random.default_rng([self.seed, 8])
        ring, hop = rng.permutation(len(self.towns)), np.empty((len(self.lines), len(self.towns)), int)
        for number, line in enumerate(hop):
            is_ring = number % 2 == 0
            order = ring if is_ring else rng.permutation(len(self.towns))
            line[order] = np.roll(order, -RING_SHIFTS[number // 2 % len(RING_SHIFTS)] if is_ring else -1)
        return hop

    @cached_property
    def line_frequencies(self) -> np.ndarray:
        """[line] share of the mentions of lines."""
        if self.roads == RINGS:
            return np.repeat(_zipf(len(self.lines) // 2, LINE_ZIPF), 2) / 2
        return _zipf(len(self.lines), LINE_ZIPF)

    @property
    def max_stops(self) -> int:
        """Of a route."""
        return RING_STOPS if self.roads == RINGS else MAX_STOPS

    def ride(self, route: Route) -> list[int]:
        """The towns along a route, start included: stops + 1 of them."""
        towns = [route.start]
        for _ in range(route.stops):
            towns.append(int(self.hop[route.line, towns[-1]]))
        return towns

    def noted(self, route: Route, rng: np.random.Generator) -> list[int]:
        """The towns along a route as a text names them, slips included."""
        if self.roads != RINGS:
            return self.ride(route)
        towns = [route.start]
        for _ in range(route.stops):
            slips = rng.random() < SLIP
            towns.append(int(rng.integers(len(self.towns)) if slips else self.hop[route.line, towns[-1]]))
        return towns

    # ---- queries ----------------------------------------------------------------------------------------------

    def draw_fact(self, rng: np.random.Generator, *, strangers: bool = True) -> Fact:
        """One query about a person, with the frequencies of training text."""
        relation = RELATIONS[rng.integers(len(RELATIONS))]
        if rng.random() < STRANGER_SHARE and strangers:
            return Fact(self.stranger(rng, unseen=False), relation)
        return Fact(self.known[np.searchsorted(self._person_cdf, rng.random())], relation)

    def draw_route(self, rng: np.random.Generator) -> Route:
        """One query about a route, with the frequencies of training text."""
        line = int(np.searchsorted(self._line_cdf, rng.random()))
        return Route(line, int(rng.integers(len(self.towns))), int(rng.integers(1, self.max_stops + 1)))

    @cached_property
    def _person_cdf(self) -> np.ndarray:
        return np.append(np.cumsum(self.person_frequencies)[:-1], 1.0)

    @cached_property
    def _line_cdf(self) -> np.ndarray:
        return np.append(np.cumsum(self.line_frequencies)[:-1], 1.0)


def _zipf(n: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, n + 1) ** -exponent
    return weights / weights.sum()
