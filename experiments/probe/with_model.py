"""Rungs and baselines that read the model itself, at the last prompt token: LoRA, the logit lens, the first token, and
linear probes of random weights and of the checkpoint before training; and of the question's input embeddings.

What needs only stored activations is in `experiments.probe.probe`, and its rows are joined by these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from experiments.config.study import Cell, ModelConfig, ProbesConfig
from experiments.probe.generative_rung import Tell, fit_generative
from experiments.probe.open_classes import sentence_encoder
from experiments.probe.probed import CLASSES, Probed, probe_device
from experiments.sample.asked import form_of
from experiments.sample.models import Models, load_model, model_path
from probes.activations.capture import capture
from probes.activations.hooks import decoder_layers
from probes.activations.layers import Layers
from probes.evaluation.baselines import first_token_features, random_init_like
from probes.evaluation.result import GENERATIVE, Evaluation
from probes.evaluation.rungwise import Candidates
from probes.rungs.class_texts import text_embeddings
from probes.rungs.lens import LensProbe, final_norm, first_tokens
from probes.rungs.lora import LoRAProbe, adapter_rate, projections
from probes.targets.closed import OTHER
from probes.targets.scalars import SCALARS
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import LanguageModel
from semcal.models.weights import check_path
from semcal.positions import LAST_PROMPT_TOKEN, is_residual
from semcal.runs.run import Run
from semcal.sampling.records import Prompt
from semcal.semantics.class_table import UNEXPLORED, UNPARSED

WHOLE_MODEL = "whole model"  # where other rows name the layer they read
ADAPTERS = (GENERATIVE, "lora")
EMBEDDING, RANDOM, BEFORE = "embedding", "random-init", "step-0"
_OF_THE_FIRST_TOKEN = ("classes", "b_confidence", "entropy")


def check_probes(probes: ProbesConfig, model: ModelConfig) -> None:
    """Refuse, before a model is loaded, what is not available to these probes.

    Raises:
        UserError: peft or the device is missing; there is no checkpoint at `probes.step0`, or no sentence encoder at
            `probes.encoder`.
    """
    if not probes.enabled:
        return
    try:
        probe_device(probes.device)
    except UserError as error:
        raise UserError(f"probes.device: {error}") from None
    sentence_encoder(probes)
    if (adapters := [name for name in ADAPTERS if name in probes.rungs]) and find_spec("peft") is None:
        raise UserError(f"probes.rungs: {adapters[0]} needs peft; pip install 'semcal[organisms]'")
    if BEFORE in probes.baselines:
        before = before_training(model, probes.step0)
        try:
            check_path(model_path(before), before.revision, allow_pickle=before.allow_pickle, adapter=before.adapter)
        except UserError as error:
            raise UserError(f"probes.step0: {error}") from None


def before_training(model: ModelConfig, step0: str) -> ModelConfig:
    """The checkpoint that `probes.step0` names: a folder, a Hub id, ID@REVISION, or @REVISION of the model's own id."""
    path, _, revision = (step0, "", "") if Path(step0).exists() else step0.partition("@")
    before = {"path": path or model.path, "revision": revision or None, "adapter": None}
    return model.model_copy(update=before)


@dataclass(frozen=True)
class ModelProbes:
    """What a study asks of a run's model; `of` has checked that it is available."""

    cell: Cell
    run: Run
    model: LanguageModel
    tell: Tell

    @classmethod
    def of(cls, cell: Cell, run: Run, models: Models, tell: Tell) -> ModelProbes | None:
        """None, and no model is loaded, where nothing asks for it.

        Raises:
            UserError: other weights, or another tokenizer, than the run's; modules unknown to LoRA or the lens;
                the last block's output was not captured; a checkpoint before training with another tokenizer.
        """
        if not cell.probes.reads_model:
            return None
        check_probes(cell.probes, cell.model)
        found = cls(cell, run, models.of_run(cell, run), tell)
        try:
            if set(ADAPTERS) & set(cell.probes.rungs):
                projections(found.model.model)
            if "lens" in cell.probes.rungs or "first-token" in cell.probes.baselines:
                final_norm(found.model.model)
        except TypeError as error:
            raise UserError(
                f"{cell.model.name}: {error}; leave generative, lora, lens and first-token out of probes"
            ) from None
        if "first-token" in cell.probes.baselines and found.last_block not in (there := found.captured):
            raise UserError(
                f"{run.folder}: probes.baselines: first-token reads {found.last_block}, which was not captured"
                f"{nearest(found.last_block, there)}; leave it out, or add this hook to capture.hooks in a study of "
                "another name"
            )
        if BEFORE in cell.probes.baselines:
            before = before_training(cell.model, cell.probes.step0)
            how = before.model_dump(include={"revision", "trust_remote_code"})
            if not LanguageModel.without_weights(model_path(before), **how).encodes_like(found.model):
                raise UserError(
                    f"probes.step0: {cell.probes.step0} has another tokenizer than {run.folder} was made with; give "
                    "the checkpoint that this model's training started from"
                )
        return found

    def fit(self, at: Probed) -> Iterator[Evaluation]:
        """Every target by every rung and baseline that reads the model, on questions that have the last prompt token.

        LoRA has no control task: it would double the cost of by far the most expensive rung. The lens learns nothing,
        so there is nothing to control.
        """
        probes = self.cell.probes
        for name in probes.targets:
            if GENERATIVE in probes.rungs and name == CLASSES:
                yield self._generative(at)
            if "lora" in probes.rungs and name in at.closed and name not in SCALARS:
                yield self._lora(name, at)
            if "lens" in probes.rungs and name == CLASSES and name in at.closed:
                yield from self._lens(at)
            if "first-token" in probes.baselines and name in _OF_THE_FIRST_TOKEN:
                features = first_token_features(self.model, at.activations.layer(self.last_block))
                yield from at.fit_baseline([name], "first-token", features)
        if EMBEDDING in probes.baselines:
            yield from at.fit_baseline(probes.targets, EMBEDDING, question_embeddings(self.model, at.texts.texts))
        if RANDOM in probes.baselines:
            layers = self._shown_by(random_init_like(self.model, self.cell.seed), at)
            yield from at.fit_baseline(probes.targets, RANDOM, layers)
        if BEFORE in probes.baselines:
            yield from at.fit_baseline(probes.targets, BEFORE, self._before(at))

    def _generative(self, at: Probed) -> Evaluation:
        ids = [prompt.ids for prompt in self._prompts(at)]
        against = at.classes.candidates if at.opened else None
        found, curve = fit_generative(self.cell, self.run, self.model, at.table, ids, against, self.tell)
        self.run.write_learning_curve(curve)
        return found

    def _lora(self, name: str, at: Probed) -> Evaluation:
        chosen_from = Candidates(
            "lora", [LoRAProbe(self.model, lr=adapter_rate(self.model), seed=self.cell.seed)], control=False
        )
        ids = [prompt.ids for prompt in self._prompts(at)]
        return at.fit_rung(name, chosen_from, ids, layer=WHOLE_MODEL)

    def _lens(self, at: Probed) -> Iterator[Evaluation]:
        """At every residual stream captured: a next token cannot be read from what a block adds to it."""
        path = [LensProbe(self.model, self._first_tokens(at.distribution(CLASSES).classes))]
        for layer in filter(is_residual, self.captured):
            yield at.fit_rung(
                CLASSES, Candidates("lens", path, control=False), at.activations.layer(layer), layer=layer
            )

    def _before(self, at: Probed) -> Layers:
        before = load_model(before_training(self.cell.model, self.cell.probes.step0))
        assert isinstance(before, LanguageModel)
        layers = self._shown_by(before, at)
        if layers.names != self.captured:
            raise UserError(
                f"probes.step0: {self.cell.probes.step0} has other layers ({len(layers.names)}) than {self.run.folder} "
                f"({len(self.captured)}); give the checkpoint that this model's training started from"
            )
        return layers

    def _shown_by(self, model: LanguageModel, at: Probed) -> Layers:
        """What another model shows at the run's hooks for the same prompts."""
        found = capture(model, self._prompts(at), hooks=self.cell.capture.hooks)
        return Layers.of(found.values, found.layers)

    def _prompts(self, at: Probed) -> list[Prompt]:
        ids = dict(zip(self.run.questions()["id"], self.run.prompt_ids(), strict=True))
        return [Prompt(key, ids[key]) for key in at.table.questions]

    @cached_property
    def captured(self) -> tuple[str, ...]:
        return self.run.activations(LAST_PROMPT_TOKEN).layers

    @property
    def last_block(self) -> str:
        return f"blocks.{len(decoder_layers(self.model.model)) - 1}.hook_resid_post"

    def _first_tokens(self, classes: Sequence[str]) -> list[tuple[int, ...]]:
        """[class] the first tokens of its answers, read after the last lines of a prompt and a space."""
        prompt = str(self.run.questions()["prompt"].iloc[0])
        forms = surface_forms(self.run, classes)
        spaced = [[f" {form}" for form in some] for some in forms]
        if form_of(self.cell).rendered:  # whose template decides whether a space comes first
            spaced = [[*some, *after] for some, after in zip(forms, spaced, strict=True)]
        return first_tokens(self.model, spaced, context="".join(prompt.splitlines(keepends=True)[-2:]))


def question_embeddings(model: LanguageModel, texts: Sequence[str]) -> Layers:
    """Questions as the mean of the model's input embeddings over their tokens, in any order, as if it were a layer:
    what the words say to the model before it has read them in context."""
    ids = [model.encode_rendered(f" {text}", [(0, len(text) + 1)]) for text in texts]
    return Layers.of(text_embeddings(model, ids)[:, None], ["mean input embedding"])


def surface_forms(run: Run, classes: Sequence[str]) -> list[list[str]]:
    """[class] how each may be written: its aliases, the gold answers in this class, or else its own name.

    No form for what is not an answer, or a pool of many.
    """
    questions, gold = run.question_records(), run.class_table().gold_classes
    forms: dict[str, set[str]] = {}
    for form, label in run.aliases().closed.items():
        forms.setdefault(label, set()).add(form)
    for question, correct in zip(questions, gold, strict=True):
        if len(correct) == 1 and not question.others:
            forms.setdefault(next(iter(correct)), set()).update(question.answers)
    written = [sorted(forms.get(label, {label, label[:1].upper() + label[1:]})) for label in classes]
    none = (UNPARSED, UNEXPLORED, OTHER)
    return [[] if label in none else some for label, some in zip(classes, written, strict=True)]
