"""What a message may say: one that decodes may still be absurd.

Pure functions; each returns what is wrong, or "".

What passes can be computed with as it is: arrays have the lengths and the element types that they
should, tokens are in the vocabulary, and numbers that are added up are finite.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import (
    EpisodeKey,
    Response,
    ShardState,
    SignalFrame,
    Stats,
    Trajectory,
    Turn,
    TurnRequest,
)

NO_TOKENS = "tokens that do not exist"
MAX_TURNS = 10_000
MAX_REWARD = 1e9
REPORTED = {
    "learner": (
        "phase",
        "gauge",
        "dropped",
        "failures",
        "drops",
        "waiting",
        "update",
        "evaluation",
    ),
    "controller": ("gauge", "waiting"),
}
"""Process -> events of its Stats."""
SIGNAL_COLUMNS = ("position", "entropy", "confidence", "top_log_prob", "forced", "previous")
LOG_PROB_ROUNDING = 1e-3
"""By which a log-prob may be above 0."""


class Limits(NamedTuple):
    """What holds for all episodes of a run."""

    vocabulary: int
    context: int  # tokens of prompt or response, at most
    group_size: int


class AdmissionWindow(NamedTuple):
    """Which episodes may come now."""

    first_group: int  # training groups in [first_group, end_group)
    end_group: int
    evaluations: int  # evaluations that were asked for: 0 ... evaluations - 1
    evaluation_episodes: int
    version: int  # newest weights


def validate_trajectory(trajectory: Trajectory, bounds: Limits, open: AdmissionWindow) -> str:
    """Whether it is one of the episodes that are being played, and can be trained on.

    One of a group that has left is in order: its actor waits for the acknowledgement.
    """
    turns = trajectory.turns
    if len(turns) > MAX_TURNS or (not turns and trajectory.drop_reason is None):
        return f"{len(turns)} turns"
    if flaw := _validate_key(trajectory.key, bounds, open):
        return flaw
    for i, turn in enumerate(turns):
        if flaw := _validate_turn(turn, bounds, open.version):
            return f"turn {i}: {flaw}"
    for name, value in trajectory.scores.items():
        if not isfinite(value):
            return f"score {name} is {value}"
    return _of_values(turns, bounds.vocabulary)


def validate_turn_request(request: TurnRequest, bounds: Limits) -> str:
    """Whether the engine can be asked for it."""
    if request.turn_index < 0:
        return "a negative turn"
    return _of_length("prompt", request.prompt, bounds, least=1) or (
        "" if _below(request.prompt, bounds.vocabulary) else NO_TOKENS
    )


def validate_signal_frame(frame: SignalFrame) -> str:
    """Whether each of its turns has each of its signals.

    What they say may still be absurd: see `find_misplaced_rows` and `is_finite_signal`.
    """
    rows = len(frame.turn_ids)
    columns = [getattr(frame, name) for name in SIGNAL_COLUMNS]
    if any(len(column) != 4 * rows for column in columns):
        return f"{rows} turns with columns of {[len(column) for column in columns]} bytes"
    return ""


def find_misplaced_rows(frame: SignalFrame, most_tokens: int) -> list[int]:
    """Rows of a frame of the right form at positions that no response of at most `most_tokens`
    tokens has: whoever follows a turn keeps something for each position before the signal's."""
    if _below(frame.position, most_tokens):
        return []
    return np.flatnonzero(unpack(frame.position, INT32).view("<u4") >= most_tokens).tolist()


def drop_rows(frame: SignalFrame, rows: Collection[int]) -> SignalFrame:
    """The frame's other rows."""
    kept = [row for row in range(len(frame.turn_ids)) if row not in rows]
    columns = {
        name: unpack(getattr(frame, name), INT32)[kept].tobytes() for name in SIGNAL_COLUMNS
    }  # words of 4 bytes, whatever they hold
    return replace(frame, turn_ids=[frame.turn_ids[row] for row in kept], **columns)


def is_finite_signal(signal: tuple) -> bool:
    """Whether the signal (position, entropy, confidence, top log-prob, ...) is of a distribution:
    of NaN none of this holds."""
    _, entropy, confidence, top_log_prob, *_ = signal
    least = -LOG_PROB_ROUNDING
    return least <= entropy < inf and least <= confidence < inf and least <= -top_log_prob < inf


def validate_shard_state(state: ShardState, shards: int) -> str:
    """Whether it is of one of the `shards` shards of the run, beside the controller."""
    if not 0 < state.shard < shards or state.version < -1:
        return f"shard {state.shard} of {shards} with weights {state.version}"
    return (
        ""
        if all(map(isfinite, (state.seconds, *state.gauges.values())))
        else "a gauge that is no finite number"
    )


def validate_stats(stats: Stats) -> str:
    """Whether a process of the run reports it."""
    if stats.event not in REPORTED.get(stats.source, ()):
        return f"event {stats.event[:20]!r} from {stats.source[:20]!r}"
    if stats.event in ("update", "evaluation"):
        number = stats.values.get("update")
        if not isinstance(number, int | float) or not 0 <= number < 2**31 or number != int(number):
            return f"update number {number!r}"
    if stats.event in ("waiting", "drops"):
        wrong = [value for value in stats.values.values() if not _is_amount(value)]
        return f"{wrong[0]!r} as an amount" if wrong else ""
    return ""


def _is_amount(value: float | str | None) -> bool:
    return isinstance(value, int | float) and 0 <= value < inf


def _validate_key(key: EpisodeKey, bounds: Limits, open: AdmissionWindow) -> str:
    if key.evaluation:
        known = 0 <= key.group < open.evaluations and 0 <= key.member < open.evaluation_episodes
    else:
        known = 0 <= key.group < open.end_group and 0 <= key.member < bounds.group_size
    return "" if known else f"episode {key.id} is none that is being played"


def _validate_turn(turn: Turn, bounds: Limits, version: int) -> str:
    """What can be said without looking into its arrays."""
    if flaw := _of_length("prompt", turn.prompt, bounds, least=1):
        return flaw
    if not -MAX_REWARD <= turn.reward <= MAX_REWARD:  # nor is NaN
        return f"a reward of {turn.reward}"
    if flaw := _validate_response(turn.kept, bounds, version) or _of_coverage(turn.kept):
        return flaw
    for attempt in turn.rejected:
        if flaw := _validate_response(attempt, bounds, version):
            return f"rejected: {flaw}"
    return ""


def _validate_response(attempt: Response, bounds: Limits, version: int) -> str:
    if flaw := _of_length("response", attempt.tokens, bounds):
        return flaw
    length = attempt.length
    if len(attempt.log_probs) != 4 * length:
        return f"log_probs of {len(attempt.log_probs)} bytes for {length} tokens"
    if len(attempt.mask) != length:
        return f"mask of {len(attempt.mask)} bytes for {length} tokens"
    if attempt.uncertainty and len(attempt.uncertainty) != 2 * length:
        return f"uncertainty of {len(attempt.uncertainty)} bytes for {length} tokens"
    if attempt.signals and len(attempt.signals) != 12 * length:
        return f"signals of {len(attempt.signals)} bytes for {length} tokens"
    if not 0 <= attempt.thinking <= bounds.context:
        return f"{attempt.thinking} thinking tokens"
    end = 0
    newest = max((span.version for span in attempt.spans), default=-1)
    if newest > version:
        return (
            f"tokens from weights {newest}, and this run has made none after {version}: does "
            "another run use its engine?"
        )
    for span in attempt.spans:
        if not (end <= span.start < span.stop <= length and -1 <= span.version <= version):
            return (
                f"tokens {span.start} to {span.stop} of {length} from weights {span.version} of "
                f"{version}"
            )
        end = span.stop
    return ""


def _of_values(turns: Sequence[Turn], vocabulary: int) -> str:
    """Of all arrays of an episode at once: NumPy's calls cost more than what they do here."""
    attempts = [attempt for turn in turns for attempt in (turn.kept, *turn.rejected)]
    if not _below(
        b"".join([*(turn.prompt for turn in turns), *(attempt.tokens for attempt in attempts)]),
        vocabulary,
    ):
        return NO_TOKENS
    mask = unpack(b"".join(attempt.mask for attempt in attempts), UINT8)
    if mask.max(initial=0) > 1:
        return "a mask that is neither 0 nor 1"
    chosen = unpack(b"".join(attempt.log_probs for attempt in attempts), FLOAT32)[mask.view(bool)]
    if not ((chosen <= LOG_PROB_ROUNDING) & (chosen > -inf)).all():  # neither holds of NaN
        return "a token to be trained on whose log-prob is none"
    return ""


def _of_coverage(attempt: Response) -> str:
    """Of sound spans: each token is to be trained on by its age."""
    covered = sum(span.stop - span.start for span in attempt.spans)
    return "" if covered == attempt.length else f"weights for {covered} of {attempt.length} tokens"


def _of_length(name: str, data: bytes, bounds: Limits, least: int = 0) -> str:
    sound = (
        len(data) % INT32.itemsize == 0 and least <= len(data) // INT32.itemsize <= bounds.context
    )
    return "" if sound else f"a {name} of {len(data)} bytes"


def _below(numbers: bytes, bound: int) -> bool:
    """Whether they are all in [0, bound), as tokens that exist are: negative ones are large without
    their sign."""
    return int(unpack(numbers, INT32).view("<u4").max(initial=0)) < bound
