"""Arrays inside messages: raw little-endian bytes, one element type a field."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan

import numpy as np

INT32 = np.dtype("<i4")
FLOAT32 = np.dtype("<f4")
FLOAT16 = np.dtype("<f2")
UINT8 = np.dtype("u1")


def pack(values: Sequence | np.ndarray, dtype: np.dtype) -> bytes:
    """The values as bytes of `dtype`."""
    return np.asarray(values, dtype=dtype).tobytes()


def unpack(data: bytes, dtype: np.dtype) -> np.ndarray:
    """A read-only array [N] over `data`.

    Raises ValueError if the length is no multiple of the element size.
    """
    return np.frombuffer(data, dtype=dtype)


def finite_or_none(value: float | None) -> float | None:
    """The value, or None for what a message has NaN or an infinity for."""
    if value is None or not isfinite(value):
        return None
    return float(value)


def none_to_nan(value: float | None) -> float:
    """Pack an optional number: messages have NaN where there is none."""
    if value is None:
        return nan
    return value
