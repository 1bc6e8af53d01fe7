"""What a file of adapters (LoRA) says of itself, and the names of its tensors, which are peft's."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

HEADER_KEY = "foray_adapter"
"""Key of the header (JSON of an AdapterHeader) in a safetensors file's metadata."""

PREFIX = "base_model.model."
A = ".lora_A.weight"
B = ".lora_B.weight"

BASE_FILE = "base.safetensors"
"""File beside those of adapters: the weights that they are added to."""


class AdapterHeader(msgspec.Struct, frozen=True):
    """Describes the adapters of a file: W + alpha / rank B A, with W from `BASE_FILE`."""

    rank: int
    alpha: float
    base_checksum: str  # SHA-256 of the base file's contents

    @property
    def scale(self) -> float:
        """Factor of the product of both matrices."""
        return self.alpha / self.rank


def to_metadata(header: AdapterHeader) -> dict[str, str]:
    """Build the metadata of a file of adapters."""
    return {HEADER_KEY: msgspec.json.encode(header).decode()}


def from_metadata(metadata: Mapping[str, str] | None) -> AdapterHeader | None:
    """Read the header of a file of adapters; None for a file of whole weights."""
    if not metadata or HEADER_KEY not in metadata:
        return None
    return msgspec.json.decode(metadata[HEADER_KEY], type=AdapterHeader)


def matrix_names(weight: str) -> tuple[str, str]:
    """Return the names of A and B in a file, by the name of the weight that they are added to."""
    module = PREFIX + weight.removesuffix(".weight")
    return module + A, module + B


def weight_of(matrix: str) -> str:
    """Return the name of the weight that a matrix of a file is added to."""
    return matrix.removeprefix(PREFIX).removesuffix(A).removesuffix(B) + ".weight"
