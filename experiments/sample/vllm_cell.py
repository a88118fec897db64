"""A cell that vLLM samples: the engine of a loaded model, what is compared before any answer is kept, the answers.

The model itself is loaded here, too, on the CPU: it renders prompts, decides where answers end, and says by plain
passes what vLLM must compute.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from experiments.sample.models import model_path
from probes.activations.capture import ResidualCapture
from probes.activations.engine_capture import EngineCapture
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.models.formats.adapters import parts_of
from semcal.runs.stored_activations import Activations
from semcal.sampling.checks import FAILED, Check, stated_apart
from semcal.sampling.decoding.decoders import plain_pass
from semcal.sampling.decoding.rounding import rounding
from semcal.sampling.engine import Work
from semcal.sampling.records import Answered, Prompt
from semcal.sampling.vllm.interpreter import vllm_python
from semcal.sampling.vllm.stated_draws import stated_draws
from semcal.sampling.vllm.vllm_engine import VllmEngine, VllmModel
from semcal.sampling.vllm.vllm_sampling import PATH, VllmSampling
from semcal.sampling.vllm.vllm_server import Expected, VllmServer

if TYPE_CHECKING:
    from experiments.config.study import ModelConfig
    from experiments.sample.sampling_job import SamplingJob

RELATIVE = 1e-3  # most that the stream of a layer may be off in single precision, of its length
COSINE = 0.999  # least of a layer in 16 bits
NATS = 1e-3  # most that a stated log-probability of a token may be off in single precision
_LAW_PROMPTS, _LAW_DRAWS = 4, 250
_BLOCK = 32  # a prompt of whole blocks and one token more is read once for all draws of its first token
_UNKNOWN = ("prefill_seconds", "peak_kv_bytes")  # of the work that vLLM does
_NEW_TOKENS = 3  # of the answers that are compared first


class VllmSampler:
    """Samples a cell in vLLM, once what it computes was found to be what the model computes.

    Args:
        engine: vLLM with the model.
        model: The model itself.
        job: The cell.
        capture: Keeps what is read in prompts; None where nothing is.

    Attributes:
        work: What was done, as `semcal.sampling.engine.Work` names it.
        law: Whether first tokens are drawn as their stated probabilities say.
        parity: For the manifest: how far activations and log-probabilities are from those of plain passes.
    """

    def __init__(
        self, engine: VllmSampling, model: LanguageModel, job: SamplingJob, capture: EngineCapture | None
    ) -> None:
        self.engine, self.model, self.capture = engine, model, capture
        self.settings, self.rule = job.settings, model.stop_rule(job.settings.stop)
        prompts = sorted((a.prompt for a in job.asked), key=lambda p: len(p.ids))
        self._spent = engine.cpu_seconds()
        engine.fit(len(prompts[-1].ids) + job.settings.max_new_tokens, model.context)
        compared = prompts if len(prompts) < 2 else [prompts[0], prompts[-1]]
        apart, limit, layers = self._compare(compared)
        work = asdict(Work(path=PATH, apart=apart or 0.0, apart_limit=limit))
        self.work: dict[str, Any] = {key: n for key, n in work.items() if key not in _UNKNOWN}
        self.law = self._check_law(prompts)
        self.parity = {"prompts": len(compared), "nats": apart, "nats_limit": limit, "layers": layers}

    def sample(self, prompts: Sequence[Prompt], on_answered: Callable[[int], None]) -> Iterator[Answered]:
        """M answers to every prompt; what is to be read of it is in `capture` before."""
        for answered in self.engine.sample(prompts, self.settings, self.rule, self.capture, on_answered):
            length = sum(s.count * len(s.ids) for s in answered.samples)
            self.work["rows_decoded"] += length
            self.work["rows_plain"] += length
            self.work["prompt_tokens"] += next(len(p.ids) for p in prompts if p.key == answered.key)
            self.work["restarts"] = self.engine.restarts
            self.work["engine_cpu_seconds"] = self.engine.cpu_seconds() - self._spent
            yield answered

    def _compare(self, prompts: Sequence[Prompt]) -> tuple[float | None, float, dict[str, float]]:
        """How far vLLM is from plain passes on a few prompts: (log-probabilities, in nats a token; what rounding
        explains of it; activations by layer).

        Raises:
            UserError: further than rounding explains, naming the layer.
        """
        model, capture = self.model, self.capture
        few = replace(self.settings, m=2, max_new_tokens=min(_NEW_TOKENS, self.settings.max_new_tokens))
        found = {a.key: a for a in self.engine.sample(prompts, few, self.rule, capture)}
        plain = None
        if capture is not None:
            plain = ResidualCapture(capture.layers, {p.key: capture.where[p.key] for p in prompts})
        exact = few.top_k is None and few.top_p is None
        drawn = [(p, found[p.key].samples[0]) for p in prompts]
        apart = stated_apart(model.model, model.device, few, drawn, plain) if exact or plain else None
        layers: dict[str, float] = {}
        limit = max(NATS, self._rounding(prompts[:1]))
        if exact and apart is not None and apart > limit:
            raise UserError(
                f"log-probabilities of vLLM {self.engine.facts['version']} differ from those of plain Hugging Face "
                f"passes by {apart:.2g} nats (at most {limit:.2g} is rounding); {self.engine.remedy}"
            )
        if capture is not None and plain is not None:
            keys = [p.key for p in prompts]
            for position in {position for key in keys for position in capture.where[key]}:
                check_layers(capture.take(keys, position), plain.take(keys, position), model.dtype, layers)
        return (apart if exact else None), limit, layers

    @torch.inference_mode()
    def _rounding(self, prompts: Sequence[Prompt]) -> float:
        def passes() -> torch.Tensor:
            return plain_pass(self.model.model, [p.ids for p in prompts], self.model.device)

        return rounding(self.model.model, passes(), passes)

    def _check_law(self, prompts: Sequence[Prompt]) -> Check:
        """
        Raises:
            UserError: vLLM does not draw as it says.
        """
        some = prompts[:: max(1, len(prompts) // _LAW_PROMPTS)][:_LAW_PROMPTS]
        cut = [replace(p, ids=p.ids[: (len(p.ids) - 1) // _BLOCK * _BLOCK + 1]) for p in some]
        check = stated_draws(self.engine.first_tokens(cut, replace(self.settings, m=_LAW_DRAWS)))
        if check.outcome == FAILED:
            raise UserError(
                f"vLLM {self.engine.facts['version']} does not draw as it states: {check.why} is {check.figure:.3g}, "
                f"at most {check.limit:.3g} is right; {self.engine.remedy}"
            )
        return check


def check_layers(ours: Activations, theirs: Activations, dtype: torch.dtype, apart: dict[str, float]) -> None:
    """Compare activations read in vLLM with those of plain passes, layer by layer, and note how far they are: in single
    precision the length of the difference relative to that of the stream, in 16 bits 1 minus the cosine.

    Raises:
        UserError: too far apart, naming the layer; or read at another token.
    """
    if not np.array_equal(ours.token_ids, theirs.token_ids) or not np.array_equal(ours.token_index, theirs.token_index):
        raise UserError("vLLM showed activations of other tokens than those asked for; use engine hf, and report this")
    single = dtype == torch.float32
    limit, what = (RELATIVE, "relative difference") if single else (1 - COSINE, "1 minus the cosine")
    for i, name in enumerate(ours.layers):
        a, b = ours.values[:, i].astype(np.float64), theirs.values[:, i].astype(np.float64)
        lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        if single:
            figures = np.linalg.norm(a - b, axis=-1) / (lengths[1] + 1e-30)
        else:
            figures = 1 - (a * b).sum(-1) / (lengths[0] * lengths[1] + 1e-30)
        apart[name] = max(apart.get(name, 0.0), float(figures.max(initial=0.0)))
        if not apart[name] <= limit:
            raise UserError(
                f"activations at {name} differ between vLLM and plain Hugging Face passes ({what} {apart[name]:.2g}, "
                f"at most {limit:.2g} is rounding); use engine hf, or set capture.positions to [], and report this"
            )


# ---- one engine a model ----------------------------------------------------------------------------------------------

_ENGINES: WeakKeyDictionary[torch.nn.Module, VllmSampling] = WeakKeyDictionary()


def engine_of(model: LanguageModel, config: ModelConfig, rows: int | None) -> VllmSampling:
    """vLLM with a loaded model, a running server or a process of its own. It is kept as long as the model is, and a
    process for as many answers at once as it was first asked for."""
    engine = _ENGINES.get(model.model)
    if engine is None:
        for other in list(_ENGINES.values()):  # its model may not be gone yet, and holds most of the GPU
            other.stop()
        engine = _server(model, config) if config.served_at else _process(model, config, rows)
        _ENGINES[model.model] = engine
    return engine


def _process(model: LanguageModel, config: ModelConfig, rows: int | None) -> VllmEngine:
    python = vllm_python(config.python)
    where = {"dtype": config.dtype, "device": config.device, "trust_remote_code": config.trust_remote_code}
    if _is_read_by_vllm(model, config):
        engine = VllmEngine(python, VllmModel(model_path(config), config.revision, rows=rows, **where))
        weakref.finalize(model.model, engine.close)
        return engine
    folder = tempfile.TemporaryDirectory(prefix="semcal-vllm-model-")
    model.model.save_pretrained(folder.name)
    model.tokenizer.save_pretrained(folder.name)
    engine = VllmEngine(python, VllmModel(folder.name, rows=rows, **where))
    weakref.finalize(model.model, _end, engine, folder)
    return engine


def _server(model: LanguageModel, config: ModelConfig) -> VllmServer:
    address, served, sizes = config.served_at, config.served, model.model.config.get_text_config()
    assert address is not None
    try:
        from semcal.models.connection import Connection
    except ImportError as error:
        raise UserError(f"{address} is a server, which needs {error.name}; pip install 'semcal[serve]'") from error
    url, patience = f"{address.rstrip('/').removesuffix('/v1')}/v1", {"tries": served.tries, "timeout": served.timeout}
    expected = Expected(
        model_path(config),
        config.revision,
        config.dtype,
        layers=sizes.num_hidden_layers,
        width=sizes.hidden_size,
        vocabulary=sizes.vocab_size,
        trust_remote_code=config.trust_remote_code,
    )
    engine = VllmServer(
        lambda: Connection(url, api_key_env="SEMCAL_API_KEY", **patience),
        expected,
        name=served.model,
        concurrency=served.concurrency,
    )
    weakref.finalize(model.model, engine.stop)
    return engine


def _is_read_by_vllm(model: LanguageModel, config: ModelConfig) -> bool:
    """Whether vLLM can read a checkpoint as it lies there, and computes with the weights that were loaded here."""
    path = model_path(config)
    return not (model.quantised or Path(path).is_file() or parts_of(path, config.revision, config.adapter).adapters)


def _end(engine: VllmEngine, folder: tempfile.TemporaryDirectory) -> None:
    engine.close()
    folder.cleanup()
