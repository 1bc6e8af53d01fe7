"""Turns of a conversation in one row: every token goes through the model once.

Attention is causal, and positions count from the row's first token. So what the model computes of a
turn is the same in a row of its own and in one that goes on after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from learner.data.samples import TrainingSample

Row = Sequence[TrainingSample]
"""Samples of which each prompt begins with all tokens of the one before; at least one."""


def merge_turns(samples: Iterable[TrainingSample]) -> list[Row]:
    """Put each sample into the row of the one before it, if its prompt extends that one's tokens.

    The order stays.
    """
    rows: list[list[TrainingSample]] = []
    for sample in samples:
        if rows and _extends(sample, rows[-1][-1]):
            rows[-1].append(sample)
        else:
            rows.append([sample])
    return list(rows)


def row_length(row: Row) -> int:
    """Return the tokens of a row: those of its last turn."""
    return row[-1].length


def _extends(sample: TrainingSample, previous: TrainingSample) -> bool:
    """Tell if a prompt begins with the prompt and the response of another turn."""
    start = len(previous.prompt)
    return (
        len(sample.prompt) >= previous.length
        and np.array_equal(sample.prompt[:start], previous.prompt)
        and np.array_equal(sample.prompt[start : previous.length], previous.response)
    )
