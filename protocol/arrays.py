"""Arrays inside messages: raw little-endian bytes, one element type a field.

This is also where `None` in memory and NaN in a message meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan

import numpy as np

INT32 = np.dtype("<i4")
FLOAT32 = np.dtype("<f4")
FLOAT16 = np.dtype("<f2")
UINT8 = np.dtype("u1")


def pack(values: Sequence | np.ndarray, dtype: np.dtype) -> bytes:
    """Pack the values as bytes of `dtype`."""
    return np.asarray(values, dtype=dtype).tobytes()


def unpack(data: bytes, dtype: np.dtype) -> np.ndarray:
    """View `data` as a read-only array [N].

    Raises ValueError if the length is no multiple of the element size.
    """
    return np.frombuffer(data, dtype=dtype)


def finite_or_none(value: float | None) -> float | None:
    """Return the value, or None where a message has NaN or an infinity."""
    if value is None or not isfinite(value):
        return None
    return float(value)


def none_to_nan(value: float | None) -> float:
    """Return the value, or NaN, which messages have where there is none."""
    if value is None:
        return nan
    return value
