"""The time of day, for what is read beside a clock or a calendar.

It may be set at any moment: durations are taken from `time.monotonic`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def epoch_seconds() -> float:
    """Seconds since 1970 in UTC."""
    return time.time()


def utc_now() -> str:
    """The time in UTC to the second, as ISO 8601 has it: "2031-05-01T12:00:00Z"."""
    return datetime.fromtimestamp(epoch_seconds(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
