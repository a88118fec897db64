"""A low-rank adapter in training, and the plain model that it is merged into."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from semcal.models.checkpoint import LanguageModel


@dataclass(frozen=True)
class Adapted:
    """A model with a trainable adapter (LoRA, Hu et al. 2022) on every linear layer but the output.

    Attributes:
        plain: The model that training starts from, until `merge` puts the adapter into its weights. Sampler, reference
            and final checkpoint are this model, so none of them needs to know of adapters.
        trained: A copy with the adapter, whose own weights never change; the embeddings are shared.
    """

    plain: LanguageModel
    trained: PeftModel

    @classmethod
    def of(cls, model: LanguageModel, *, rank: int, seed: int) -> Adapted:
        """A new adapter, which at first changes nothing."""
        whole = model.model
        embeddings = (whole.get_input_embeddings(), whole.get_output_embeddings())
        shared = {id(p): p for layer in embeddings if layer is not None for p in layer.parameters()}
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # names of transformers that peft will change
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # which peft sets by itself
            trained = get_peft_model(copy.deepcopy(whole, shared), config)
        folder = Path(model.path)
        config.base_model_name_or_path = str(folder.resolve()) if folder.exists() else model.path
        return cls(model, trained)

    @torch.no_grad()
    def merge(self) -> None:
        """Bring the plain model up to date: each of its weights becomes that of the copy plus the adapter's product."""
        plain: dict[str, Any] = dict(self.plain.model.named_modules())
        adapted: dict[str, Any] = dict(self.trained.get_base_model().named_modules())
        for name in [name for name, layer in adapted.items() if isinstance(layer, LoraLayer)]:
            product, into = adapted[name].get_delta_weight("default"), plain[name].weight
            into.copy_(adapted[name].get_base_layer().weight.float() + product.float())

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter alone; adapter_config.json names the model that it belongs to."""
        self.trained.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form to fill in

    def write_merged(self, folder: Path) -> None:
        """Write the merged model in Hugging Face format."""
        self.merge()
        self.plain.model.save_pretrained(folder)

    @property
    def bytes_merged(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.plain.model.parameters())

    @property
    def bytes_of_adapter(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.trained.parameters() if p.requires_grad)
