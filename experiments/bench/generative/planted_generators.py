"""Class distributions that are known exactly, for the organism to emit: its own, the world's, or constant ones.

And how near to them anything can come that ends in the organism's norm and output layer, which adapters leave as they
are: a hidden state of bounded size cannot give each of some tokens any share it likes among a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from experiments.atlas.world import World
from experiments.atlas.world_questions import atlas_questions, query_of
from probes.rungs.emitting.emitter import Emitter
from probes.rungs.emitting.generated_text import ClassTexts, class_texts
from probes.rungs.lens import final_norm
from probes.solver.token_trees import TokenTree
from probes.targets.open import OpenTarget
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import FewShot, few_shot
from semcal.questions.question import Question

FORM = FewShot("concise", shots=2)
EXEMPLARS = 8
LEAST = 1e-6  # mass of a class; a lighter one is left out
TOWNS = ("Amberford", "Amberford Town", "Birchmere", "Claymere", "Claymere Town", "Dovermere")
WORDINGS = ("Where was {} born?", "What is the trade of {}?", "Where does {} spend the summer?")
# No answer of the organism mixes these.
MIXED = ("Amberford", "Amberford Gate", "baker", "smith", "smith baker", "weaver")


@dataclass(frozen=True)
class Planted:
    """Questions to the organism and their exact class distributions.

    Attributes:
        prompts: [question] token ids.
        target: with exact masses.
        group: [question].
        texts: of the classes.
    """

    prompts: tuple[tuple[int, ...], ...]
    target: OpenTarget
    group: tuple[str, ...]
    texts: ClassTexts

    @property
    def entropies(self) -> np.ndarray:
        """[question] in nats."""
        return cross_entropies(self.target, np.log(self.target.mass))

    @property
    def asked(self) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
        """[question] its prompt, and the token ids of its classes."""
        ids = [self.texts.ids[column] for column in self.target.column]
        return [
            (prompt, ids[self.target.starts[i] : self.target.starts[i + 1]]) for i, prompt in enumerate(self.prompts)
        ]


def cross_entropies(target: OpenTarget, log_q: np.ndarray) -> np.ndarray:
    """[question] in nats, from `log_q` [entry]."""
    return np.bincount(target.question, -target.mass * log_q, len(target))


def of_the_model(model: LanguageModel, family: str, n: int) -> Planted:
    """What the organism itself answers in a word or phrase, over towns and trades: the probabilities of the three forms
    of each added up, relative to the sum of all, which is above 0.99 on average."""
    world = World(0)
    questions, prompts = _asked(world, model, family, n)
    forms = {form: label for label, written in world.surfaces.items() for form in written}
    spelled = class_texts(model, list(forms), FORM)
    scores = Emitter(model, 1, spelled.end, seed=0).score_all([(prompt, spelled.ids) for prompt in prompts])
    masses = []
    for row in scores:  # of adapters that do nothing yet
        own = dict.fromkeys(world.surfaces, 0.0)
        for label, score in zip(forms.values(), row, strict=True):
            own[label] += float(np.exp(score))
        masses.append(own)
    return _planted(model, prompts, masses, [question.group for question in questions])


def of_the_world(model: LanguageModel, family: str, n: int) -> Planted:
    """What is true in the organism's world, in closed form (`World.truth`)."""
    world = World(0)
    questions, prompts = _asked(world, model, family, n)
    truths = [world.truth(query_of(question.id)) for question in questions]
    return _planted(model, prompts, truths, [question.group for question in questions])


def by_wording(model: LanguageModel, labels: Sequence[str], n: int, *, wordings: int = 3) -> Planted:
    """One distribution for each of up to three wordings, whoever is asked about; for a single one, constant."""
    kinds = np.arange(n) % wordings
    asked = [WORDINGS[k].format(World(0).known[i].name) for i, k in enumerate(kinds)]
    prompts = [model.encode(f"Question: {text}\nAnswer:") for text in asked]
    shares = softmax(2 * np.random.default_rng(1).normal(size=(len(WORDINGS), len(labels))), axis=1)
    masses = [dict(zip(labels, shares[kind], strict=True)) for kind in kinds]
    return _planted(model, prompts, masses, [str(i // 2) for i in range(n)])


def sampled(target: OpenTarget, m: int, *, seed: int) -> OpenTarget:
    """The same questions, of whose distributions m samples are known."""
    rng, rows = np.random.default_rng(seed), []
    for row in range(len(target)):
        own = target.entries([row])
        counts = rng.multinomial(m, target.mass[own] / target.mass[own].sum())
        rows.append(dict(zip(target.column[own].tolist(), (counts / m).tolist(), strict=True)))
    return _target(target.classes, rows, m)


def output_limit(model: LanguageModel, planted: Planted, questions: int) -> float:
    """The least mean KL gap on the first questions, in nats, of anything that ends in this model's last norm and output
    layer: where a token is predicted, a hidden state of its own is put before them and optimised."""
    output = model.model.get_output_embeddings()
    assert isinstance(output, nn.Module)
    norm, head = deepcopy(final_norm(model.model)).double(), deepcopy(output).double()
    width, target, found = model.model.config.get_text_config().hidden_size, planted.target, []
    for row, (_, sequences) in enumerate(planted.asked[:questions]):
        mass = target.mass[target.entries([row])]
        tree = TokenTree.of((0,), sequences, planted.texts.end)
        places, place = np.unique(tree.source, return_inverse=True)
        weight, token, place = (torch.as_tensor(part) for part in (tree.weights(mass), tree.token, place))
        states = torch.randn(len(places), width, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
        optimiser = torch.optim.LBFGS([states], max_iter=300, line_search_fn="strong_wolfe")

        def loss(states=states, weight=weight, place=place, token=token, optimiser=optimiser) -> torch.Tensor:
            optimiser.zero_grad()
            nats = -(weight * torch.log_softmax(head(norm(states)), 1)[place, token]).sum()
            nats.backward()
            return nats

        optimiser.step(loss)  # pyright: ignore[reportArgumentType]
        found.append(loss().item() + (mass * np.log(mass)).sum())
    return float(np.mean(found))


def _asked(world: World, model: LanguageModel, family: str, n: int) -> tuple[list[Question], list[tuple[int, ...]]]:
    """Questions, and the token ids of their prompts, exemplars included."""
    questions = atlas_questions(world, family, n + EXEMPLARS, seed=0)
    shown, asked = questions[:EXEMPLARS], questions[EXEMPLARS:]
    texts = [few_shot(question, shown, FORM.style, FORM.shots, FORM.seed) for question in asked]
    return asked, [model.encode(text) for text in texts]


def _planted(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    masses: Sequence[Mapping[str, float]],
    group: Sequence[str],
) -> Planted:
    """From masses by label, relative to their sum without the lightest."""
    labels = sorted({label for own in masses for label in own})
    rows = []
    for own in masses:
        heavy = {labels.index(label): mass for label, mass in own.items() if mass >= LEAST}
        rows.append({column: mass / sum(heavy.values()) for column, mass in heavy.items()})
    texts = class_texts(model, labels, FORM)
    return Planted(tuple(prompts), _target(labels, rows, None), tuple(group), texts)


def _target(labels: Sequence[str], rows: Sequence[Mapping[int, float]], m: int | None) -> OpenTarget:
    ordered = [sorted(((c, mass) for c, mass in row.items() if mass > 0), key=lambda e: (-e[1], e[0])) for row in rows]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ordered])])
    column, mass = (np.array([entry[i] for row in ordered for entry in row]) for i in range(2))
    return OpenTarget(tuple(labels), starts, column.astype(np.int64), mass, m)
