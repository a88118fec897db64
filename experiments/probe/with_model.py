"""Rungs and baselines that read the model itself, at the last prompt token: LoRA, the logit lens, the first token, and
linear probes of random weights and of the checkpoint before training.

What needs only stored activations stands in `probing.py`, whose rows these join.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from experiments.config.study import Cell, ModelConfig, ProbesConfig
from experiments.probe.at_position import SCALARS, Asked, distribution_target, fit_linear, fit_rung, layer_of
from experiments.sample.models import Models, load_model, model_path
from probes.activations.capture import capture
from probes.activations.hooks import decoder_layers
from probes.activations.layers import Layers
from probes.evaluation.baselines import first_token_features, random_init_like
from probes.evaluation.result import Evaluation
from probes.rungs.lens import LensProbe, final_norm, first_tokens
from probes.rungs.lora import LoRAProbe, projections
from probes.targets.closed import OTHER
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import LanguageModel, check_path
from semcal.positions import LAST_PROMPT_TOKEN, is_residual
from semcal.runs.run import Run
from semcal.sampling.records import Prompt
from semcal.semantics.collapsing.collapse import UNPARSED
from semcal.semantics.distribution import UNEXPLORED

WHOLE_MODEL = "whole model"  # stands where other rows name the layer they read
RANDOM, BEFORE = "random-init", "step-0"
_OF_THE_FIRST_TOKEN = ("classes", "b_confidence", "entropy")


def check_probes(probes: ProbesConfig, model: ModelConfig) -> None:
    """Refuse, before a model loads, what these probes cannot have.

    Raises:
        UserError: peft is missing; there is no checkpoint at `probes.step0`.
    """
    if not probes.enabled:
        return
    if "lora" in probes.rungs and find_spec("peft") is None:
        raise UserError("probes.rungs: lora needs peft; pip install 'semcal[organisms]'")
    if BEFORE in probes.baselines:
        before = before_training(model, probes.step0)
        try:
            check_path(model_path(before), before.revision, allow_pickle=before.allow_pickle)
        except UserError as error:
            raise UserError(f"probes.step0: {error}") from None


def before_training(model: ModelConfig, step0: str) -> ModelConfig:
    """The checkpoint that `probes.step0` names: a folder, a Hub id, ID@REVISION, or @REVISION of the model's own id."""
    path, _, revision = (step0, "", "") if Path(step0).exists() else step0.partition("@")
    return model.model_copy(update={"path": path or model.path, "revision": revision or None})


@dataclass(frozen=True)
class ModelProbes:
    """What a study asks of a run's model; `of` has checked that it can be had."""

    cell: Cell
    run: Run
    model: LanguageModel

    @classmethod
    def of(cls, cell: Cell, run: Run, models: Models) -> ModelProbes | None:
        """None, and no model is loaded, where nothing asks for it.

        Raises:
            UserError: other weights, or another tokenizer, than the run's; modules that LoRA or the lens do not know;
                the last block's output was not captured; a checkpoint before training with another tokenizer.
        """
        if not cell.probes.reads_model:
            return None
        check_probes(cell.probes, cell.model)
        found = cls(cell, run, models.of_run(cell, run))
        try:
            if "lora" in cell.probes.rungs:
                projections(found.model.model)
            if "lens" in cell.probes.rungs or "first-token" in cell.probes.baselines:
                final_norm(found.model.model)
        except TypeError as error:
            raise UserError(f"{cell.model.name}: {error}; leave lora, lens and first-token out of probes") from None
        if "first-token" in cell.probes.baselines and found.last_block not in (there := found.captured):
            raise UserError(
                f"{run.folder}: probes.baselines: first-token reads {found.last_block}, which was not captured"
                f"{nearest(found.last_block, there)}; leave it out, or add this hook to capture.hooks in a study of "
                "another name"
            )
        if BEFORE in cell.probes.baselines:
            found.check_tokenizer(before_training(cell.model, cell.probes.step0))
        return found

    def check_tokenizer(self, before: ModelConfig) -> None:
        looked_at = LanguageModel.without_weights(
            model_path(before), revision=before.revision, trust_remote_code=before.trust_remote_code
        )
        if not looked_at.encodes_like(self.model):
            raise UserError(
                f"probes.step0: {self.cell.probes.step0} has another tokenizer than {self.run.folder} was made with; "
                "give the checkpoint that this model's own training began with"
            )

    def fit(self, asked: Asked) -> Iterator[Evaluation]:
        """Every target by every rung and baseline that reads the model, on questions that have the last prompt token.

        LoRA has no control task: it would double what is by far the dearest rung. The lens learns nothing, so there is
        nothing to control.
        """
        probes = self.cell.probes
        for name in probes.targets:
            if "lora" in probes.rungs and name not in SCALARS:
                yield self._lora(name, asked)
            if "lens" in probes.rungs and name == "classes":
                yield from self._lens(asked)
            if "first-token" in probes.baselines and name in _OF_THE_FIRST_TOKEN:
                features = first_token_features(self.model, layer_of(self.run, LAST_PROMPT_TOKEN, self.last_block))
                yield self._linear(name, "first-token", features, asked)
        for baseline, shown in ((RANDOM, self._random), (BEFORE, self._before)):
            if baseline in probes.baselines:
                layers = shown(asked)
                for name in probes.targets:
                    yield self._linear(name, baseline, layers, asked)

    def _lora(self, name: str, asked: Asked) -> Evaluation:
        # The best rate of Adam falls as 1/width (Yang et al. 2022, arXiv 2203.03466): 2e-4 for 2,048 dimensions.
        rate = min(3e-3, 0.4 / self.model.model.config.get_text_config().hidden_size)
        path = [LoRAProbe(self.model, lr=rate, seed=self.cell.seed)]
        ids = [prompt.ids for prompt in self._prompts(asked)]
        return fit_rung(self.cell, name, path, ids, asked, rung="lora", layer=WHOLE_MODEL, control=False)

    def _lens(self, asked: Asked) -> Iterator[Evaluation]:
        """At every layer that is a residual stream: what a block adds to it is no place to read a next token from."""
        target, _ = distribution_target(self.cell, "classes", asked)
        path = [LensProbe(self.model, self._first_tokens(target.classes))]
        for layer in filter(is_residual, self.captured):
            X = layer_of(self.run, LAST_PROMPT_TOKEN, layer)
            yield fit_rung(self.cell, "classes", path, X, asked, rung="lens", layer=layer, control=False)

    def _linear(self, name: str, baseline: str, source: Layers, asked: Asked) -> Evaluation:
        return fit_linear(self.cell, name, source, asked, rung=f"baseline:{baseline}", permutations=0)

    def _random(self, asked: Asked) -> Layers:
        return self._shown_by(random_init_like(self.model, self.cell.seed), asked)

    def _before(self, asked: Asked) -> Layers:
        before = load_model(before_training(self.cell.model, self.cell.probes.step0))
        assert isinstance(before, LanguageModel)
        layers = self._shown_by(before, asked)
        if layers.names != self.captured:
            raise UserError(
                f"probes.step0: {self.cell.probes.step0} has other layers ({len(layers.names)}) than {self.run.folder} "
                f"({len(self.captured)}); give the checkpoint that this model's own training began with"
            )
        return layers

    def _shown_by(self, model: LanguageModel, asked: Asked) -> Layers:
        """What another model shows at the hooks of the run, of the same prompts."""
        found = capture(model, self._prompts(asked), hooks=self.cell.capture.hooks)
        return Layers.of(found.values, found.layers)

    def _prompts(self, asked: Asked) -> list[Prompt]:
        ids = self.run.prompt_ids()
        return [Prompt(key, ids[row]) for key, row in zip(asked.table["id"], asked.rows, strict=True)]

    @cached_property
    def captured(self) -> tuple[str, ...]:
        return self.run.activation_layers(LAST_PROMPT_TOKEN)

    @property
    def last_block(self) -> str:
        return f"blocks.{len(decoder_layers(self.model.model)) - 1}.hook_resid_post"

    def _first_tokens(self, classes: Sequence[str]) -> list[tuple[int, ...]]:
        """[class] as the answers to this run's prompts begin: behind the prompt's last lines, and a space."""
        prompt = str(self.run.questions()["prompt"].iloc[0])
        forms = surface_forms(self.run, classes)
        spaced = [[f" {form}" for form in its] for its in forms]
        if self.cell.model.prompt == "chat":  # whose template decides whether a space comes first
            spaced = [[*its, *behind] for its, behind in zip(forms, spaced, strict=True)]
        return first_tokens(self.model, spaced, context="".join(prompt.splitlines(keepends=True)[-2:]))


def surface_forms(run: Run, classes: Sequence[str]) -> list[list[str]]:
    """[class] how each may be written: its aliases, the gold answers that are of it, or else its own name.

    None for what is no answer, or a pool of many.
    """
    questions, gold = run.question_records(), run.class_table().gold_classes
    forms: dict[str, set[str]] = {}
    for form, klass in run.aliases().items():
        forms.setdefault(klass, set()).add(form)
    for question, correct in zip(questions, gold, strict=True):
        if len(correct) == 1 and not question.others:
            forms.setdefault(next(iter(correct)), set()).update(question.answers)
    named = [sorted(forms.get(klass, {klass, klass[:1].upper() + klass[1:]})) for klass in classes]
    return [[] if klass in (UNPARSED, UNEXPLORED, OTHER) else its for klass, its in zip(classes, named, strict=True)]
