"""Validation of messages: one that decodes may still be absurd.

All functions are pure. Each says what is wrong, or None for a sound message.

What passes can be computed with as it is. Arrays have the lengths and the element types that they
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
"""Turns of the longest episode."""
MAX_REWARD = 1e9
"""Largest magnitude of a turn's reward."""
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
"""Fields of a SignalFrame with a value for each row."""
LOG_PROB_ROUNDING = 1e-3
"""How far rounding may put a log-prob above 0."""
WORD_BYTES = 4
"""Bytes of a signal in each column of a frame."""


class Limits(NamedTuple):
    """Bounds of all episodes of a run."""

    vocabulary: int
    context: int  # tokens of prompt or response, at most
    group_size: int


class AdmissionWindow(NamedTuple):
    """Episodes that may come now."""

    first_group: int  # training groups in [first_group, end_group)
    end_group: int
    evaluations: int  # evaluations that were asked for: 0 ... evaluations - 1
    evaluation_episodes: int
    version: int  # newest weights


def validate_trajectory(
    trajectory: Trajectory, limits: Limits, window: AdmissionWindow
) -> str | None:
    """Say why the learner cannot train on a trajectory, or does not wait for it.

    An episode of a group that was consumed is in order: its actor waits for the acknowledgement.
    """
    turns = trajectory.turns
    if len(turns) > MAX_TURNS or (not turns and trajectory.drop_reason is None):
        return f"{len(turns)} turns"
    if not _is_admitted(trajectory.key, limits, window):
        return f"episode {trajectory.key.id} is none that is being played"
    for i, turn in enumerate(turns, 1):
        flaw = _validate_turn(turn, limits, window.version)
        if flaw is not None:
            return f"turn {i}: {flaw}"
    for name, value in trajectory.scores.items():
        if not isfinite(value):
            return f"score {name} is {value}"
    return _validate_arrays(turns, limits.vocabulary)


def validate_turn_request(request: TurnRequest, limits: Limits) -> str | None:
    """Say why the engine cannot be asked for a turn."""
    if request.turn_index < 0:
        return "a negative turn"
    flaw = _validate_length("prompt", request.prompt, limits, min_tokens=1)
    if flaw is None and not _all_below(request.prompt, limits.vocabulary):
        return NO_TOKENS
    return flaw


def validate_signal_frame(frame: SignalFrame) -> str | None:
    """Say which columns of a frame have not one signal for each of its turns.

    Their values may still be absurd: see `find_misplaced_rows` and `is_finite_signal`.
    """
    rows = len(frame.turn_ids)
    sizes = [len(getattr(frame, name)) for name in SIGNAL_COLUMNS]
    if any(size != WORD_BYTES * rows for size in sizes):
        return f"{rows} turns with columns of {sizes} bytes"
    return None


def find_misplaced_rows(frame: SignalFrame, max_tokens: int) -> list[int]:
    """List the rows at positions that no response of at most `max_tokens` tokens has.

    Whoever follows a turn keeps something for each position before the signal's. The frame is one
    that `validate_signal_frame` has passed.
    """
    if _all_below(frame.position, max_tokens):
        return []
    positions = unpack(frame.position, INT32).view("<u4")
    return np.flatnonzero(positions >= max_tokens).tolist()


def drop_rows(frame: SignalFrame, rows: Collection[int]) -> SignalFrame:
    """Return the frame without some of its rows."""
    kept_rows = [row for row in range(len(frame.turn_ids)) if row not in rows]
    columns = {}
    for name in SIGNAL_COLUMNS:
        words = unpack(getattr(frame, name), INT32)  # words of 4 bytes, whatever they hold
        columns[name] = words[kept_rows].tobytes()
    return replace(frame, turn_ids=[frame.turn_ids[row] for row in kept_rows], **columns)


def is_finite_signal(signal: tuple) -> bool:
    """Say whether a signal (position, entropy, confidence, top log-prob, ...) is of a distribution.

    None of the comparisons holds of NaN.
    """
    _, entropy, confidence, top_log_prob, *_ = signal
    low = -LOG_PROB_ROUNDING
    return low <= entropy < inf and low <= confidence < inf and low <= -top_log_prob < inf


def validate_shard_state(state: ShardState, shards: int) -> str | None:
    """Say why a state is of none of the run's `shards` shards, the controller being number 0."""
    if not 0 < state.shard < shards or state.version < -1:
        return f"shard {state.shard} of {shards} with weights {state.version}"
    if not all(map(isfinite, (state.seconds, *state.gauges.values()))):
        return "a gauge that is no finite number"
    return None


def validate_stats(stats: Stats) -> str | None:
    """Say why no process of the run reports these numbers."""
    if stats.event not in REPORTED.get(stats.source, ()):
        return f"event {stats.event[:20]!r} from {stats.source[:20]!r}"
    if stats.event in ("update", "evaluation"):
        number = stats.values.get("update")
        if not isinstance(number, int | float) or not 0 <= number < 2**31 or number != int(number):
            return f"update number {number!r}"
    if stats.event in ("waiting", "drops"):
        for value in stats.values.values():
            if not _is_amount(value):
                return f"{value!r} as an amount"
    return None


def _is_amount(value: float | str | None) -> bool:
    return isinstance(value, int | float) and 0 <= value < inf


def _is_admitted(key: EpisodeKey, limits: Limits, window: AdmissionWindow) -> bool:
    groups = window.end_group
    members = limits.group_size
    if key.evaluation:
        groups = window.evaluations
        members = window.evaluation_episodes
    return 0 <= key.group < groups and 0 <= key.member < members


def _validate_turn(turn: Turn, limits: Limits, version: int) -> str | None:
    """Say what is wrong with a turn, without looking into its arrays."""
    flaw = _validate_length("prompt", turn.prompt, limits, min_tokens=1)
    if flaw is not None:
        return flaw
    if not -MAX_REWARD <= turn.reward <= MAX_REWARD:  # nor is NaN
        return f"a reward of {turn.reward}"
    flaw = _validate_response(turn.kept, limits, version) or _validate_coverage(turn.kept)
    if flaw is not None:
        return flaw
    for response in turn.rejected:
        flaw = _validate_response(response, limits, version)
        if flaw is not None:
            return f"rejected: {flaw}"
    return None


def _validate_response(response: Response, limits: Limits, version: int) -> str | None:
    flaw = _validate_length("response", response.tokens, limits)
    if flaw is not None:
        return flaw
    length = response.length
    if len(response.log_probs) != 4 * length:
        return f"log_probs of {len(response.log_probs)} bytes for {length} tokens"
    if len(response.mask) != length:
        return f"mask of {len(response.mask)} bytes for {length} tokens"
    if response.uncertainty and len(response.uncertainty) != 2 * length:
        return f"uncertainty of {len(response.uncertainty)} bytes for {length} tokens"
    if response.signals and len(response.signals) != 12 * length:
        return f"signals of {len(response.signals)} bytes for {length} tokens"
    if not 0 <= response.thinking <= limits.context:
        return f"{response.thinking} thinking tokens"
    if not 0 <= response.thought_start <= limits.context:
        return f"a thought that begins at token {response.thought_start}"
    return _validate_spans(response, version)


def _validate_spans(response: Response, version: int) -> str | None:
    newest = max((span.version for span in response.spans), default=-1)
    if newest > version:
        return (
            f"tokens from weights {newest}, and this run has made none after {version}: does "
            "another run use its engine?"
        )
    end = 0
    for span in response.spans:
        if not (end <= span.start < span.stop <= response.length and -1 <= span.version <= version):
            return (
                f"tokens {span.start} to {span.stop} of {response.length} from weights "
                f"{span.version} of {version}"
            )
        end = span.stop
    return None


def _validate_coverage(response: Response) -> str | None:
    """Say of sound spans whether some token has no age to be trained on by."""
    covered = sum(span.stop - span.start for span in response.spans)
    if covered != response.length:
        return f"weights for {covered} of {response.length} tokens"
    return None


def _validate_arrays(turns: Sequence[Turn], vocabulary: int) -> str | None:
    """Say what is wrong with the values in the arrays of an episode.

    All are looked at together, since NumPy's calls cost more than what they do here.
    """
    responses = [response for turn in turns for response in (turn.kept, *turn.rejected)]
    prompts = [turn.prompt for turn in turns]
    tokens = b"".join(prompts + [response.tokens for response in responses])
    if not _all_below(tokens, vocabulary):
        return NO_TOKENS
    mask = unpack(b"".join(response.mask for response in responses), UINT8)
    if mask.max(initial=0) > 1:
        return "a mask that is neither 0 nor 1"
    log_probs = unpack(b"".join(response.log_probs for response in responses), FLOAT32)
    trained = log_probs[mask.view(bool)]
    if not ((trained <= LOG_PROB_ROUNDING) & (trained > -inf)).all():  # neither holds of NaN
        return "a token to be trained on whose log-prob is none"
    return None


def _validate_length(name: str, data: bytes, limits: Limits, min_tokens: int = 0) -> str | None:
    tokens, rest = divmod(len(data), INT32.itemsize)
    if rest or not min_tokens <= tokens <= limits.context:
        return f"a {name} of {len(data)} bytes"
    return None


def _all_below(numbers: bytes, bound: int) -> bool:
    """Say whether all are in [0, bound), as tokens that exist are.

    Negative ones are large without their sign.
    """
    return int(unpack(numbers, INT32).view("<u4").max(initial=0)) < bound
