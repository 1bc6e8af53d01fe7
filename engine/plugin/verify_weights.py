"""Comparison of a vLLM model's weights with a file, at the first update and every so many.

Weights that the model holds as they are must be equal, after conversion to the model's dtype. Those
that it has packed or quantized are tried: the layer must map random inputs as the file's weights
do. Of a quantized layer that shows wrong weights, and not a small step that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from engine.plugin.local_weights import LocalExperts, local_experts, local_weight
from engine.plugin.weight_file import read_experts

PROBES = 4
"""Random inputs that a layer is tried with, which does not hold its weights as they are."""

QUANTIZED_ERROR = 0.1
"""Largest error of a quantized layer's outputs, of their norm.

Eight-bit weights and inputs (4 bits of exponent, 3 of mantissa) are each off by 3 % on average.
"""


class Verified(NamedTuple):
    """A module that is compared, and what of it the file has for this worker."""

    name: str
    module: nn.Module
    expected: Tensor | LocalExperts


def compare_with_file(model: nn.Module, path: Path) -> int:
    """Compare the model's weights with those of a safetensors file.

    Returns how many modules were compared.

    Tensors that vLLM stacks into one (q, k and v; gate and up; the experts of a layer) are stacked
    here, too, and cut to what this worker has of them. Raises ValueError naming the first module
    that differs, or when nothing compares.
    """
    compared = 0
    for name, module, expected in _list_verified(model, path):
        if isinstance(expected, Tensor):
            equal = equal_weights(module, expected)
        else:
            equal = equal_experts(module, expected)
        if not equal:
            raise ValueError(f"after loading {path}, {name} does not hold the weights of the file")
        compared += 1
    if compared == 0:
        raise ValueError(
            f"none of the weights in {path} could be compared with those of the engine"
        )
    return compared


def _list_verified(model: nn.Module, path: Path) -> Iterator[Verified]:
    stacked: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, module in model.named_modules():
            head, _, tail = name.rpartition(".")
            if hasattr(module, "w13_weight"):
                experts = read_experts(file, names, head)
                if experts is not None and _can_be_tried(module):
                    yield Verified(name, module, local_experts(module, *experts))
                continue
            prefix = name.removesuffix(tail)
            parts = [f"{prefix}{part}.weight" for part in stacked.get(tail, [tail])]
            if tail == "lm_head" and not names.issuperset(parts):
                parts = ["model.embed_tokens.weight"]  # tied
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and names.issuperset(parts):
                tensors = [file.get_tensor(part) for part in parts]
                yield Verified(name, module, local_weight(module, tensors))


def _can_be_tried(experts: Any) -> bool:
    """Say whether a layer's experts compute what `equal_experts` does, apart from their router."""
    return experts.activation.value == "silu" and not experts.quant_method.is_monolithic


def equal_weights(module: Any, expected: Tensor) -> bool:
    """Say whether `module` has the file's weight, `expected`, and computes with it."""
    weight = module.weight
    if weight.numel() and not _is_plain(weight):
        return equal_outputs(module.quant_method.apply, module, expected, QUANTIZED_ERROR)
    if weight.numel() and not equal_values(weight, expected):
        return False
    if hasattr(module, "cpu_linear"):
        return equal_outputs(_apply_on_cpu, module, expected, 0.0)
    return bool(weight.numel())


def _is_plain(weight: Tensor) -> bool:
    return weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


def equal_values(weight: Tensor, expected: Tensor) -> bool:
    """Say whether a module holds `expected`, after conversion to its dtype, on its device.

    Raises ValueError for other shapes. A vocabulary is padded to a multiple of 64.
    """
    if (
        weight.ndim != expected.ndim
        or weight.shape[1:] != expected.shape[1:]
        or weight.shape[0] < expected.shape[0]
    ):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} cannot be compared with one of "
            f"{tuple(expected.shape)}"
        )
    held = weight[: expected.shape[0]].detach()
    return torch.equal(held, expected.to(weight.device, weight.dtype))


def _apply_on_cpu(module: Any, inputs: Tensor, bias: None) -> Tensor:
    """Compute with the packed weights, which vLLM gives to layers on CPUs."""
    return module.cpu_linear(inputs, module.weight, bias)


def equal_outputs(apply: Any, module: Any, expected: Tensor, error: float) -> bool:
    """Say whether a layer maps random inputs as `expected` [out, in] does.

    `apply(module, inputs, bias)` is the layer. `error` is what quantization may add, of the norm.
    """
    dtype = module.weight.dtype
    if not _is_plain(module.weight):
        dtype = module.params_dtype
    device = module.weight.device
    inputs = _draw_inputs(PROBES, expected.shape[1]).to(device, dtype)
    outputs = apply(module, inputs, None).float()[:, : expected.shape[0]]
    reference = inputs.float() @ expected.to(device, dtype).float().T
    return _agrees(outputs, reference, dtype, error)


def equal_experts(module: Any, expected: LocalExperts) -> bool:
    """Say whether a layer of experts maps random inputs as the file's do, one input an expert.

    Kernels keep experts in layouts of their own, so that only their outputs can be compared.
    """
    dtype = module.params_dtype
    device = module.w13_weight.device
    count = len(expected.numbers)
    inputs = _draw_inputs(count, expected.gate_up.shape[2]).to(device, dtype)
    outputs = module.quant_method.apply(
        layer=module,
        x=inputs.clone(),
        topk_weights=torch.ones(count, 1, device=device),
        topk_ids=expected.numbers.to(device, torch.int32)[:, None],
        shared_experts=None,
        shared_experts_input=None,
    )
    reference = torch.empty_like(inputs, dtype=torch.float32)
    for i in range(count):  # one after another: all at once may not fit beside the KV cache
        gate, up = expected.gate_up[i].to(device, dtype).float().chunk(2)
        x = inputs[i].float()
        hidden = functional.silu(gate @ x) * (up @ x)
        reference[i] = expected.down[i].to(device, dtype).float() @ hidden
    error = 0.0
    if not _is_plain(module.w13_weight):
        error = QUANTIZED_ERROR
    return _agrees(outputs.float(), reference, dtype, error)


def _draw_inputs(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def _agrees(outputs: Tensor, reference: Tensor, dtype: torch.dtype, error: float) -> bool:
    """Say whether outputs are the reference, up to rounding in `dtype` and quantization."""
    largest = reference.abs().max().item()
    rounding = max(4 * torch.finfo(dtype).eps * largest + 1e-6, 1e-4 * largest)
    if (outputs - reference).abs().max().item() <= rounding:
        return True
    difference = torch.linalg.vector_norm(outputs - reference)
    return bool(difference <= error * torch.linalg.vector_norm(reference))
