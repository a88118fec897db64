"""The probe of the paper: a LoRA adapter on the model itself and a linear head at the last prompt token.

Highest rung of the ladder: not what can be read from an activation, but what the model can be taught to say about its
own answers in one pass. Knows token ids and class distributions. The adapters sit on a second skeleton over the same
parameters (`semcal.models.skeleton`), so that the model itself is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from probes.activations.hooks import decoder_layers
from probes.rungs.rung import Rung
from probes.targets.closed import smoothed
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.models.skeleton import second_skeleton
from semcal.sampling.decoding.decoders import pad_left
from semcal.sampling.records import Prompt
from semcal.seeds import keyed_generator

if TYPE_CHECKING:  # an extra
    from peft import LoraConfig

_KNOWN = (nn.Linear, Conv1D)  # not what derives from them: it may compute something else


class LoRAProbe(Rung):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all projections of the decoder layers, and a head.

    X is a list of prompts, each a sequence of token ids. Class logits are a linear function of the final residual,
    normed as the model norms it, at the last prompt token; adapters and head learn together by soft cross-entropy
    (AdamW, one cycle of the learning rate). The head begins as the training marginal. Dropout is off.

    Args:
        model: whose answers are predicted; it is left as it is.
        rank: of the adapters.
        epochs: over the training prompts.
        lr: highest learning rate. 3e-3 suits a model of a million parameters; those of billions need 1e-4 to 3e-4.
        batch_size: prompts, of about the same length, left-padded.
        seed: of initial adapters and of the order of batches.

    Attributes:
        adapted_: the module tree with adapters, over the parameters of `model`.
        head_: final residual -> class logits.

    Raises (by `fit`):
        UserError: peft is missing; the decoder layers hold weights that are neither nn.Linear nor GPT-2's Conv1D; the
            model is spread over several devices.
    """

    def __init__(
        self,
        model: LanguageModel,
        rank: int = 8,
        epochs: int = 6,
        lr: float = 3e-3,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.rank = rank
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.seed = seed

    def __sklearn_clone__(self) -> Self:
        return type(self)(**self.get_params(deep=False))  # a clone asks the same model, not a copy of it

    def _inputs(self, X: Sequence[Sequence[int]]) -> np.ndarray:
        """The prompts as an array of tuples: [question]."""
        vocabulary = len(next(self.model.model.get_input_embeddings().parameters()))
        prompts = np.empty(len(X), dtype=object)
        for index, prompt in enumerate(X):
            ids = np.asarray(prompt)
            if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocabulary:
                raise ValueError(f"prompt {index} is not a sequence of token ids below {vocabulary}; encode it first")
            prompts[index] = tuple(ids.tolist())
        return prompts

    def _width(self, inputs: np.ndarray) -> int:  # noqa: ARG002 - prompts have none
        return 0

    def _row_bytes(self, inputs: np.ndarray) -> list[bytes]:
        return [np.array(prompt).tobytes() for prompt in inputs]

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:  # noqa: ARG002 - nothing is split
        device = self.model.device
        rng = keyed_generator(self.seed, "adapters")
        targets = smoothed(Y).float().to(device)
        self.adapted_ = adapted(self.model, self.rank, seed=int(rng.integers(2**62)))
        width = self.model.model.config.get_text_config().hidden_size
        self.head_ = nn.Linear(width, Y.shape[1], device="meta").to_empty(device=device)
        with torch.no_grad():
            self.head_.weight.zero_()
            self.head_.bias.copy_(torch.as_tensor(self.marginal_).log())
        parameters = [p for p in self.adapted_.parameters() if p.requires_grad] + list(self.head_.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.01)
        steps = self.epochs * -(-len(inputs) // self.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        for _ in range(self.epochs):
            batches = list(self._by_length(inputs, rng.permutation(len(inputs))))
            for index in rng.permutation(len(batches)):
                rows = batches[index]
                log_q = torch.log_softmax(self._logits(inputs[rows]), 1)
                optimiser.zero_grad()
                (-(targets[torch.as_tensor(rows, device=device)] * log_q).sum(1).mean()).backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                schedule.step()

    def _by_length(self, prompts: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
        """Rows of batches of prompts of about the same length; those of the same length come in `order`."""
        lengths = np.array([len(prompts[row]) for row in order])
        ranked = order[np.argsort(lengths, kind="stable")]
        for start in range(0, len(ranked), self.batch_size):
            yield ranked[start : start + self.batch_size]

    def _logits(self, prompts: np.ndarray) -> Tensor:
        batch = pad_left([Prompt("", prompt) for prompt in prompts], 0, self.model.device)
        out = self.adapted_.base_model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        )
        return self.head_(out.last_hidden_state[:, -1].float())

    @torch.inference_mode()
    def _log_probabilities(self, inputs: np.ndarray) -> np.ndarray:
        found = np.empty((len(inputs), len(self.marginal_)))
        for rows in self._by_length(inputs, np.arange(len(inputs))):
            found[rows] = torch.log_softmax(self._logits(inputs[rows]).double(), 1).cpu().numpy()
        return found


def adapted(model: LanguageModel, rank: int, *, seed: int) -> PreTrainedModel:
    """Another module tree over the parameters of `model`, with trainable LoRA adapters that do nothing yet (B = 0).

    Raises:
        UserError: as `LoRAProbe`.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA probes need peft; pip install 'semcal[organisms]'") from error
    if len(set(getattr(model.model, "hf_device_map", {}).values())) > 1:
        raise UserError(f"{model.path} is spread over several devices; load it on one for LoRA probes")
    skeleton = second_skeleton(model, attention=model.model.config._attn_implementation or "eager")
    config = _config(model.model, rank)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, skeleton)
    return skeleton


def write_adapter(model: LanguageModel, adapters: Mapping[str, Tensor], folder: Path) -> None:
    """Write adapters of `adapted(model, ...)` as peft does, for any tool that reads its files.

    Args:
        adapters: name in the skeleton -> values.
    """
    rank = min(min(value.shape) for value in adapters.values())
    config = _config(model.model, rank)
    there = Path(model.path)
    config.base_model_name_or_path = str(there.resolve()) if there.exists() else model.path
    config.revision, config.task_type, config.inference_mode = model.revision, "CAUSAL_LM", True
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{name.replace('.default', '')}": value.cpu() for name, value in adapters.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")


def _config(model: PreTrainedModel, rank: int) -> LoraConfig:
    from peft import LoraConfig

    names, transposed = projections(model)
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=names, fan_in_fan_out=transposed, bias="none"
    )


def adapter_rate(model: LanguageModel) -> float:
    """A learning rate of Adam for adapters: the best one falls as 1/width (Yang et al. 2022, arXiv 2203.03466), from
    3e-3 for 133 dimensions or fewer to 2e-4 for 2,048."""
    return min(3e-3, 0.4 / model.model.config.get_text_config().hidden_size)


def projections(model: PreTrainedModel) -> tuple[list[str], bool]:
    """The names of all projections inside the decoder layers, and whether they store their weights transposed.

    Raises:
        UserError: a decoder layer holds a weight matrix in a module of another kind (a mixture of experts, a quantised
            or patched layer), which a low-rank adapter would miss without saying so.
    """
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    names, kinds = [], set()
    for name, module in model.named_modules():
        if id(module) not in inside:
            continue
        if isinstance(module, nn.Linear | Conv1D) and type(module) in _KNOWN and module.weight.dtype.is_floating_point:
            names.append(name)
            kinds.add(type(module))
        elif any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            raise UserError(
                f"{type(model).__name__} keeps weights in {name}, a {type(module).__name__}, which LoRA probes do not "
                "support; use the rungs below it"
            )
    return names, kinds == {Conv1D}
