"""Comparison of a vLLM model's weights with a file, at the first update and every so many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

PROBES = 4
"""Random inputs that a packed layer is tried with."""


def compare_with_file(model: nn.Module, path: Path) -> int:
    """Compare the model's weights with those of a safetensors file.

    Returns how many modules were compared.

    Weights that the model holds as they are must be equal, after conversion to the model's dtype.
    Those of linear layers may be packed, and are then tried: the layer must map random inputs as
    the file's weights do. Tensors that vLLM stacks into one (q, k and v; gate and up) are stacked
    here, too. Raises ValueError naming the first module that differs, or when nothing compares.
    """
    stacked: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    compared = 0
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for module_name, module in model.named_modules():
            head, _, tail = module_name.rpartition(".")
            parts = [f"{head}.{part}.weight" for part in stacked.get(tail, [tail])]
            if tail == "lm_head" and not names.issuperset(parts):
                parts = ["model.embed_tokens.weight"]  # tied
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and names.issuperset(parts):
                expected = torch.cat([file.get_tensor(part) for part in parts])
                if not equal_weights(module, weight, expected):
                    raise ValueError(
                        f"after loading {path}, {module_name} does not hold the weights of the file"
                    )
                compared += 1
    if compared == 0:
        raise ValueError(
            f"none of the weights in {path} could be compared with those of the engine"
        )
    return compared


def equal_weights(module: nn.Module, weight: torch.Tensor, expected: torch.Tensor) -> bool:
    """Say whether `module`, whose parameter is `weight`, has the file's and computes with it.

    The file's weight is `expected`.
    """
    if weight.numel():
        if (
            weight.ndim != expected.ndim
            or weight.shape[1:] != expected.shape[1:]
            or weight.shape[0] < expected.shape[0]
        ):
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} cannot be compared with one of "
                f"{tuple(expected.shape)}"
            )
        # A vocabulary is padded to a multiple of 64.
        if not torch.equal(weight[: expected.shape[0]].detach().cpu(), expected.to(weight.dtype)):
            return False
    if hasattr(module, "cpu_linear"):
        return equal_outputs(module, weight, expected)
    return bool(weight.numel())


def equal_outputs(module: nn.Module, weight: torch.Tensor, expected: torch.Tensor) -> bool:
    """Say whether the packed weights of a layer on a CPU map random inputs as `expected` does."""
    inputs = torch.randn(PROBES, expected.shape[1], generator=torch.Generator().manual_seed(0)).to(
        weight.dtype
    )
    cpu_linear: Any = module.cpu_linear  # which vLLM adds to layers on CPUs
    outputs = cpu_linear(inputs, weight, None).float()[:, : expected.shape[0]]
    reference = inputs.float() @ expected.to(weight.dtype).float().T
    tolerance = 4 * torch.finfo(weight.dtype).eps * reference.abs().max().item() + 1e-6
    return bool(
        (outputs - reference).abs().max() <= max(tolerance, 1e-4 * reference.abs().max().item())
    )
