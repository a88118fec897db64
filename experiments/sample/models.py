"""The model of a configuration, loaded or connected to; and the model of a run, checked against the run's manifest.

Knows configurations and run folders; knows no question.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from experiments.atlas.weights import bundled
from experiments.config.study import Cell, ModelConfig
from experiments.sample.real_models import PREFIX, real_model
from experiments.train.checkpoints import RECORD
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.models.formats.adapters import parts_of
from semcal.models.hub import check_reachable
from semcal.models.weights import changed, check_path, weights_fingerprint
from semcal.questions.held_out import TRAINED
from semcal.runs.run import Run

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel

log = logging.getLogger(__name__)
Answerer: TypeAlias = "LanguageModel | ServedModel"


class Models:
    """Holds one model at a time: loaded when first needed, released before the next one is loaded."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._held: Answerer | None = None

    def of(self, config: ModelConfig) -> Answerer:
        """The model of a configuration, loaded or connected to."""
        if self._held is None or self._config != config:
            self._held = None
            self._held, self._config = load_model(config), config
        return self._held

    def holds(self, config: ModelConfig) -> bool:
        """Whether the model of a configuration is there already."""
        return self._held is not None and self._config == config

    def of_run(self, cell: Cell, run: Run) -> LanguageModel:
        """The model that a run was made with.

        Raises:
            UserError: it is served, or its weights, tokenizer or settings differ from those in the run's manifest.
        """
        config = cell.model
        if config.engine == "vllm" and config != self._config:  # no answers are drawn, so nothing runs in vLLM
            log.info("%s was sampled by vLLM; its model is loaded by Hugging Face, for the same samples", run.folder)
            config = config.model_copy(update={"engine": "hf", "python": None, "served_at": None})
        model, manifest = self.of(config), run.manifest()
        if not isinstance(model, LanguageModel):
            raise UserError(f"{run.folder}: {cell.model.name} is served, and activations need a local model")
        if model.weights_hash != manifest["weights_hash"] or model.tokenizer_hash != manifest["tokenizer_hash"]:
            raise UserError(
                f"{model.path} has different weights or a different tokenizer than {run.folder} was made with; restore "
                "the old ones, or run the study again under another name"
            )
        if other := changed(manifest.get("computation", {}), model.computation):
            raise UserError(
                f"{run.folder} was made with {other} in the configuration of {model.path}; restore it, or run the "
                "study again under another name"
            )
        return model


def load_model(config: ModelConfig) -> Answerer:
    """The model of a configuration, loaded or connected to."""
    if config.is_served:
        try:
            from semcal.models.served import Endpoint, ServedModel
        except ImportError as error:
            raise UserError(
                f"{config.path} is a server, which needs {error.name}; pip install 'semcal[serve]'"
            ) from error
        return ServedModel.connect(Endpoint(config.path, **config.served.model_dump()))
    how = config.model_dump(include={"revision", "dtype", "device", "allow_pickle", "trust_remote_code", "adapter"})
    if config.engine == "vllm":
        how["device"] = "cpu"  # the device is vLLM's
    _check_trained_on(config)
    model = LanguageModel.load(model_path(config), **how)
    _check_chat(config, model)
    return model


def model_to_look_at(config: ModelConfig, *, cached: bool = False) -> LanguageModel | None:
    """Tokenizer and configuration of a checkpoint; None for a served model.

    With `cached` nothing is downloaded: None also for a checkpoint on the Hub that is not in the cache.
    """
    if config.is_served:
        return None
    path = model_path(config)
    check_path(path, config.revision, allow_pickle=config.allow_pickle, adapter=config.adapter)
    weights = parts_of(path, config.revision, config.adapter).weights
    try:
        model = LanguageModel.without_weights(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code, cached=cached
        )
    except UserError:
        if cached and not Path(weights).exists():
            return None
        raise
    _check_chat(config, model)
    return model


def has_chat_template(config: ModelConfig) -> bool:
    """Whether a checkpoint can be asked by chat."""
    model = model_to_look_at(config)
    return model is not None and model.has_chat_template


def _check_trained_on(config: ModelConfig) -> None:
    """Refuse a checkpoint of `semcal train --from` whose base model has been replaced since.

    Raises:
        UserError: the base model has other weights than the adapter was trained on.
    """
    parts = parts_of(model_path(config), config.revision, config.adapter)
    for folder, base in zip(parts.adapters, (parts.weights, *map(str, parts.adapters)), strict=False):
        if not (folder / RECORD).is_file() or not Path(base).exists():
            continue
        trained_on = json.loads((folder / RECORD).read_text()).get("from_weights")
        if trained_on and trained_on != (found := weights_fingerprint(base, None)):
            raise UserError(
                f"{folder} is an adapter to weights {trained_on}, and {base} now has {found}; restore these, or train "
                "again"
            )


def trained_files(path: str, revision: str | None = None, adapter: str | None = None) -> list[Path]:
    """The questions that a model, or what it is an adapter to, was trained on; a checkpoint along the way, step-N, has
    them in the folder above.

    Args:
        path: Local folder, GGUF file or Hub id; `revision` and `adapter` as in a study.
    """
    parts = parts_of(path, revision, adapter)
    folders = [Path(path), *parts.adapters, Path(parts.weights)]
    files = [
        f / TRAINED for folder in folders for f in (folder, folder.parent) if f is folder or "step-" in folder.name
    ]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def check_weights_reachable(config: ModelConfig) -> None:
    """Check that the weights of a model, or of the base of an adapter, are here or on the Hub.

    Raises:
        UserError: as `check_reachable`.
    """
    path = model_path(config)
    parts = parts_of(path, config.revision, config.adapter)
    try:
        check_reachable(parts.weights, parts.revision)
    except UserError as error:
        raise UserError(f"the base model of {path}: {error}" if parts.named else str(error)) from error


def _check_chat(config: ModelConfig, model: LanguageModel) -> None:
    if config.prompt == "chat" and not model.has_chat_template:
        raise UserError(f"{config.name} has no chat template; set its prompt to few-shot")


def model_path(config: ModelConfig) -> str:
    """The folder, file or Hub id behind `path`: `atlas:STAGE` is a bundled organism, `real:NAME` a model that
    `experiments.sample.real_models` fetched.

    Raises:
        UserError: a model that was not fetched yet.
    """
    return place_of(config.path)


def place_of(path: str) -> str:
    """As `model_path`, of a path.

    Raises:
        UserError: a model that was not fetched yet.
    """
    if path.startswith(PREFIX):
        return str(real_model(path.removeprefix(PREFIX)))
    prefix, colon, stage = path.partition(":")
    return str(bundled(stage)) if colon and prefix == "atlas" else path
