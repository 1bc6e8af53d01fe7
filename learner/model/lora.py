"""LoRA: W + (alpha / r) B A, of which only A [r, in] and B [out, r] are trained.

Hu et al. 2021, arXiv 2106.09685, eq. 3. Layers by peft.

All matrices inside the layers have adapters, neither embeddings nor the language-model head.
Whatever leaves the learner, weights for engines and checkpoints alike, has them merged into W; a
checkpoint keeps A and B beside it, so that training goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from learner.model.slices import slice_like

A = ".lora_A"
B = ".lora_B"
_NAME = "default"  # peft's own, for the only one there is


class Adapter(NamedTuple):
    """A low-rank addition to a matrix W [out, in]: scale * b @ a."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float


def add_adapters(model: PreTrainedModel, rank: int, alpha: float) -> None:
    """Freeze the model and put an adapter beside each matrix of its layers.

    What is in them is up to `reset_adapters` or `load_adapters`. ValueError if peft is not
    installed. The caller's random state is left alone.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise ValueError("learner.lora_rank: LoRA needs peft; install the extra 'lora'") from None
    fraction = cast(int, alpha)  # which peft takes, but does not declare
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=fraction, target_modules="all-linear"), model
        )


@torch.no_grad()
def reset_adapters(model: PreTrainedModel, seed: int) -> None:
    """Begin anew: A is random, uniform within 1 / sqrt(in) of 0, and B 0: nothing changes yet.

    It is the same whatever the number of ranks.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, adapter in adapters(model):
        bound = adapter.a.shape[1] ** -0.5
        a = torch.empty(adapter.a.shape).uniform_(-bound, bound, generator=generator)
        adapter.a.copy_(slice_like(a, adapter.a))
        adapter.b.zero_()


def adapters(model: PreTrainedModel) -> Iterator[tuple[str, Adapter]]:
    """Give each adapter of the model, with the name of the matrix that it belongs to."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            layer: Any = module  # peft's, whose types say less than this
            yield (
                f"{name}.weight",
                Adapter(
                    layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight, layer.scaling[_NAME]
                ),
            )


def plain_name(name: str) -> str | None:
    """Return a weight's name as it is without adapters; None for the adapters' own."""
    if A in name or B in name:
        return None
    return name.replace(".base_layer", "")


def load_adapters(model: PreTrainedModel, kept: dict[str, Tensor]) -> None:
    """Go on from weights with adapters merged into them.

    The adapters `kept`, as `adapter_tensors` returned them, come out of the weights again (to float
    error) and become the model's own. ValueError if they are not of this rank.
    """
    with torch.no_grad():
        for name, adapter in adapters(model):
            a = kept[name + A]
            b = kept[name + B]
            if a.shape != adapter.a.shape:
                raise ValueError(
                    f"learner.lora_rank: the checkpoint's adapters have rank {a.shape[0]}, not "
                    f"{adapter.a.shape[0]}"
                )
            weight = model.get_parameter(name.removesuffix("weight") + "base_layer.weight")
            product = (adapter.scale * (b @ a)).to(weight.device)
            weight.sub_(slice_like(product, weight))
            adapter.a.copy_(slice_like(a, adapter.a))
            adapter.b.copy_(slice_like(b, adapter.b))


def adapter_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return A and B of all adapters by name, as this rank has them; empty without adapters."""
    return {
        name + part: tensor.detach()
        for name, adapter in adapters(model)
        for part, tensor in ((A, adapter.a), (B, adapter.b))
    }
