"""The model of a configuration, loaded or reached; and that of a run, loaded again and held to the run's manifest.

Knows configurations and run folders; nothing of what the model is asked.
"""

from __future__ import annotations

from pathlib import Path

from experiments.atlas.weights import bundled
from experiments.config.study import Cell, ModelConfig
from experiments.sample.prompting import Answerer
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel, check_path
from semcal.runs.run import Run


class Models:
    """Lends models, one at a time: loaded when first asked for, let go before the next one enters the memory."""

    def __init__(self) -> None:
        self._config: ModelConfig | None = None
        self._held: Answerer | None = None

    def of(self, config: ModelConfig) -> Answerer:
        """The model of a configuration, loaded or reached."""
        if self._held is None or self._config != config:
            self._held = None
            self._held, self._config = load_model(config), config
        return self._held

    def of_run(self, cell: Cell, run: Run) -> LanguageModel:
        """The very model that a run was made with.

        Raises:
            UserError: it is served, or now has other weights or another tokenizer than the run's manifest says.
        """
        model, manifest = self.of(cell.model), run.manifest()
        if not isinstance(model, LanguageModel):
            raise UserError(f"{run.folder}: {cell.model.name} is served, and what a server computes cannot be seen")
        if model.weights_hash != manifest["weights_hash"] or model.tokenizer_hash != manifest["tokenizer_hash"]:
            raise UserError(
                f"{model.path} holds other weights or another tokenizer than {run.folder} was made with; put the old "
                "ones back, or run its study again under another name"
            )
        return model


def load_model(config: ModelConfig) -> Answerer:
    """The model of a configuration, loaded or reached."""
    if config.is_served:
        return _reach(config)
    model = LanguageModel.load(
        model_path(config),
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        allow_pickle=config.allow_pickle,
        trust_remote_code=config.trust_remote_code,
    )
    _check_chat(config, model)
    return model


def model_to_look_at(config: ModelConfig, *, cached: bool = False) -> LanguageModel | None:
    """Tokenizer and configuration of a checkpoint; None for a served model.

    With `cached` the network is left alone: None also for a checkpoint of the Hub that is not in its cache.
    """
    if config.is_served:
        return None
    path = model_path(config)
    check_path(path, config.revision, allow_pickle=config.allow_pickle)
    try:
        model = LanguageModel.without_weights(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code, cached=cached
        )
    except UserError:
        if cached and not Path(path).exists():
            return None
        raise
    _check_chat(config, model)
    return model


def _check_chat(config: ModelConfig, model: LanguageModel) -> None:
    if config.prompt == "chat" and not model.has_chat_template:
        raise UserError(f"{config.name} has no chat template; set its prompt to few-shot")


def _reach(config: ModelConfig) -> Answerer:
    try:
        from semcal.models.served import Endpoint, ServedModel
    except ImportError as error:
        raise UserError(f"{config.path} is a server, which needs {error.name}; pip install 'semcal[serve]'") from error
    return ServedModel.connect(Endpoint(config.path, **config.served.model_dump()))


def model_path(config: ModelConfig) -> str:
    """The folder or Hub id behind `path`; `atlas:STAGE` is a bundled organism."""
    prefix, colon, stage = config.path.partition(":")
    return str(bundled(stage)) if colon and prefix == "atlas" else config.path
