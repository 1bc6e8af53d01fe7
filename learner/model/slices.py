"""Tensors that are sliced between ranks, and whole ones."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor in full, from all ranks' slices of it. All ranks must ask."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def slice_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's slice of a tensor that all ranks have, sliced as `parameter` is.

    What has another shape (an optimizer's count of steps) is no slice, and stays whole.
    """
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )
