"""Messages that decode and are absurd all the same.

What is wrong with them is found, and what passes can be trained on.
"""

from __future__ import annotations

from math import inf, nan

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, pack, unpack
from protocol.codec import BadFrame, decode, encode
from protocol.messages import (
    DropReason,
    EpisodeKey,
    Response,
    ShardState,
    SignalFrame,
    Span,
    Stats,
    StopReason,
    Trajectory,
    Turn,
)
from protocol.validation import (
    MAX_TURNS,
    AdmissionWindow,
    Limits,
    drop_rows,
    find_misplaced_rows,
    is_finite_signal,
    validate_shard_state,
    validate_signal_frame,
    validate_stats,
    validate_trajectory,
    validate_turn_request,
)
from tests.fixtures.messages import make_response, make_trajectory, make_turn, make_turn_request

BOUNDS = Limits(vocabulary=100, context=64, group_size=4)
OPEN = AdmissionWindow(first_group=2, end_group=6, evaluations=2, evaluation_episodes=8, version=5)
replace = msgspec.structs.replace


def attempt(length: int = 3, **changed: object) -> Response:
    sound: dict[str, object] = {
        "tokens": pack([1, 2, 99][:length], INT32),
        "log_probs": pack([-0.5, nan, 0.0][:length], FLOAT32),
        "mask": pack([1, 0, 1][:length], UINT8),
        "spans": [Span(0, 2, 4), Span(2, 3, 5)] if length == 3 else [],
        "uncertainty": pack([0.5] * length, FLOAT16),
        "signals": pack([1.0] * 3 * length, FLOAT32),
        "thinking": 1,
    }
    return make_response(length, **sound | changed)


def turn(**changed: object) -> Turn:
    return make_turn(**{"kept": attempt(), "rejected": [attempt(0)], "reward": 1.0} | changed)


def trajectory(**changed: object) -> Trajectory:
    return make_trajectory(**{"key": EpisodeKey(3, 1), "turns": [turn()]} | changed)


def flaw(changed: Trajectory) -> str:
    return validate_trajectory(changed, BOUNDS, OPEN) or ""


@pytest.mark.parametrize(
    "sound",
    [
        trajectory(),
        trajectory(key=EpisodeKey(0, 0)),
        trajectory(key=EpisodeKey(1, 7, True)),
        trajectory(turns=[], drop_reason=DropReason.ENV_ERROR),
        trajectory(turns=[turn(kept=attempt(uncertainty=b"", signals=b""))]),
    ],
    ids=["of training", "of a group that has left", "of an evaluation", "dropped", "not watched"],
)
def test_what_actors_send_passes(sound: Trajectory) -> None:
    assert flaw(sound) == ""


@pytest.mark.parametrize(
    ("absurd", "said"),
    [
        (trajectory(key=EpisodeKey(6, 0)), "none that is being played"),
        (trajectory(key=EpisodeKey(2**60, 0)), "none that is being played"),
        (trajectory(key=EpisodeKey(-1, 0)), "none that is being played"),
        (trajectory(key=EpisodeKey(3, 4)), "none that is being played"),
        (trajectory(key=EpisodeKey(2, 0, True)), "none that is being played"),
        (trajectory(key=EpisodeKey(1, 8, True)), "none that is being played"),
        (trajectory(turns=[]), "0 turns"),
        (trajectory(turns=[turn()] * (MAX_TURNS + 1)), "10001 turns"),
        (trajectory(turns=[turn(), turn(reward=nan)]), "turn 2: a reward of nan"),
        (trajectory(turns=[turn(reward=-inf)]), "a reward of -inf"),
        (trajectory(turns=[turn(reward=1e300)]), "a reward of"),
        (trajectory(scores={"raw": nan}), "score raw is nan"),
        (trajectory(turns=[turn(prompt=b"")]), "a prompt of 0 bytes"),
        (trajectory(turns=[turn(prompt=b"abc")]), "a prompt of 3 bytes"),
        (trajectory(turns=[turn(prompt=pack([1] * 65, INT32))]), "a prompt of 260 bytes"),
        (trajectory(turns=[turn(prompt=pack([100], INT32))]), "tokens that do not exist"),
        (
            trajectory(turns=[turn(kept=attempt(tokens=pack([1, -1, 2], INT32)))]),
            "tokens that do not exist",
        ),
        (
            trajectory(turns=[turn(kept=attempt(log_probs=pack([-1.0], FLOAT32)))]),
            "log_probs of 4 bytes for 3 tokens",
        ),
        (
            trajectory(turns=[turn(kept=attempt(log_probs=pack([nan] * 3, FLOAT32)))]),
            "whose log-prob is none",
        ),
        (
            trajectory(turns=[turn(kept=attempt(log_probs=pack([-1.0, -1.0, 3.0], FLOAT32)))]),
            "whose log-prob is none",
        ),
        (trajectory(turns=[turn(kept=attempt(mask=b"\1\1"))]), "mask of 2 bytes"),
        (trajectory(turns=[turn(kept=attempt(mask=b"\1\0\7"))]), "a mask that is neither"),
        (trajectory(turns=[turn(kept=attempt(signals=b"1234"))]), "signals of 4 bytes"),
        (trajectory(turns=[turn(kept=attempt(uncertainty=b"12"))]), "uncertainty of 2 bytes"),
        (trajectory(turns=[turn(kept=attempt(thinking=-1))]), "-1 thinking tokens"),
        (trajectory(turns=[turn(kept=attempt(spans=[Span(0, 4, 1)]))]), "tokens 0 to 4 of 3"),
        (
            trajectory(turns=[turn(kept=attempt(spans=[Span(1, 2, 1), Span(0, 1, 1)]))]),
            "tokens 0 to 1 of 3",
        ),
        (
            trajectory(turns=[turn(kept=attempt(spans=[Span(0, 3, 6)]))]),
            "from weights 6, and this run has made none after 5",
        ),
        (trajectory(turns=[turn(kept=attempt(spans=[]))]), "weights for 0 of 3 tokens"),
        (
            trajectory(turns=[turn(kept=attempt(spans=[Span(0, 1, 1), Span(2, 3, 1)]))]),
            "weights for 2 of 3 tokens",
        ),
        (trajectory(turns=[turn(rejected=[attempt(mask=b"")])]), "rejected: mask of 0 bytes"),
    ],
)
def test_what_no_actor_sends_is_refused_and_named(absurd: Trajectory, said: str) -> None:
    assert said in flaw(absurd)


numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 120)
raw = st.binary(max_size=24) | st.lists(st.integers(0, 99), max_size=6).map(
    lambda tokens: pack(tokens, INT32)
)
spans = st.lists(st.builds(Span, numbers, numbers, numbers), max_size=3)
attempts = st.builds(
    Response,
    tokens=raw,
    log_probs=raw,
    mask=raw,
    spans=spans,
    uncertainty=raw,
    signals=raw,
    events=st.just([]),
    stop=st.sampled_from(StopReason),
    score=st.floats(),
    thinking=numbers,
)
turns = st.builds(
    Turn,
    prompt=raw,
    kept=attempts | st.just(attempt()),
    rejected=st.lists(attempts, max_size=2),
    reward=st.floats(),
    valid=st.booleans(),
    anchor=st.just(""),
    action=st.just(""),
)
keys = st.builds(EpisodeKey, numbers, numbers, st.booleans())


@given(
    st.builds(
        trajectory,
        key=keys | st.just(EpisodeKey(3, 1)),
        turns=st.lists(turns | st.just(turn()), max_size=3),
    )
)
def test_whatever_a_trajectory_says_is_judged_and_what_passes_can_be_read(
    any_trajectory: Trajectory,
) -> None:
    if flaw(any_trajectory):
        return
    for each in any_trajectory.turns:
        tokens = each.kept.length
        assert abs(each.reward) < inf and 0 < len(each.prompt) // 4 <= BOUNDS.context
        assert len(each.kept.log_probs) == 4 * tokens == 4 * len(each.kept.mask)
        assert each.kept.signal_table().shape[0] in (0, tokens)


@given(st.data())
def test_a_damaged_trajectory_is_a_bad_frame_or_is_judged(data: st.DataObject) -> None:
    frame = bytearray(encode(trajectory()))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode(bytes(frame))
    except BadFrame:
        return
    assert not isinstance(message, Trajectory) or isinstance(flaw(message), str)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"turn_index": -1}, "a negative turn"),
        ({"prompt": b""}, "a prompt of 0 bytes"),
        ({"prompt": pack([-5], INT32)}, "do not exist"),
        ({"prompt": pack([1] * 65, INT32)}, "a prompt of 260 bytes"),
        ({}, ""),
    ],
)
def test_a_turn_that_no_engine_could_generate_is_refused(changed: dict, said: str) -> None:
    found = validate_turn_request(replace(make_turn_request(), **changed), BOUNDS) or ""
    assert said in found and bool(found) is bool(said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"turn_ids": ["a", "b"]}, "2 turns with columns"),
        ({"entropy": b""}, "1 turns with columns"),
    ],
)
def test_a_signal_frame_whose_columns_differ_is_refused(changed: dict, said: str) -> None:
    number = pack([0.5], FLOAT32)
    whole = pack([3], INT32)
    sound = SignalFrame(
        step=0,
        turn_ids=["a"],
        position=whole,
        entropy=number,
        confidence=number,
        top_log_prob=number,
        forced=whole,
        previous=whole,
    )
    found = validate_signal_frame(replace(sound, **changed)) or ""
    assert said in found and bool(found) is bool(said)


@given(st.lists(st.integers(-3, 70), max_size=6))
def test_frame_without_its_impossible_rows_keeps_the_others(
    positions: list[int],
) -> None:
    """A frame with impossible rows keeps the others.

    Its rows are for the tokens at `positions` of responses of at most 64.
    """
    rows = range(len(positions))
    number = pack([row / 2 for row in rows], FLOAT32)
    whole = pack(list(rows), INT32)
    frame = SignalFrame(
        step=0,
        turn_ids=[str(row) for row in rows],
        position=pack(positions, INT32),
        entropy=number,
        confidence=number,
        top_log_prob=number,
        forced=whole,
        previous=whole,
    )
    misplaced = find_misplaced_rows(frame, max_tokens=64)
    assert misplaced == [row for row in rows if not 0 <= positions[row] < 64]
    left = drop_rows(frame, misplaced)
    kept = [row for row in rows if row not in misplaced]
    assert left.turn_ids == [str(row) for row in kept] and validate_signal_frame(left) is None
    assert unpack(left.position, INT32).tolist() == [positions[row] for row in kept]
    assert unpack(left.entropy, FLOAT32).tolist() == [row / 2 for row in kept]
    assert unpack(left.previous, INT32).tolist() == kept


@pytest.mark.parametrize(
    ("entropy", "confidence", "top_log_prob", "sound"),
    [
        (0.5, 2.0, -0.3, True),
        (0.0, 0.0, 0.0, True),
        (-1e-6, -1e-6, 1e-6, True),
        (nan, 2.0, -0.3, False),
        (0.5, inf, -0.3, False),
        (0.5, 2.0, -inf, False),
        (0.5, 2.0, nan, False),
        (-1.0, 2.0, -0.3, False),
        (0.5, -1.0, -0.3, False),
        (0.5, 2.0, 0.3, False),
    ],
)
def test_a_signal_is_of_a_distribution(
    entropy: float, confidence: float, top_log_prob: float, sound: bool
) -> None:
    assert is_finite_signal((3, entropy, confidence, top_log_prob, -1, 5)) is sound


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        (Stats(source="learner", event="update", values={"update": 3.0}), ""),
        (Stats(source="controller", event="gauge", values={"anything": None}), ""),
        (
            Stats(source="controller", event="update", values={"update": 3}),
            "event 'update' from 'controller'",
        ),
        (Stats(source="x", event="gauge", values={}), "event 'gauge' from 'x'"),
        (Stats(source="learner", event="update", values={"update": nan}), "update number nan"),
        (Stats(source="learner", event="update", values={}), "update number None"),
        (
            Stats(source="learner", event="evaluation", values={"update": 1e300}),
            "update number 1e+300",
        ),
    ],
)
def test_what_no_process_of_the_run_reports_is_refused(stats: Stats, said: str) -> None:
    found = validate_stats(stats) or ""
    assert said in found and bool(found) is bool(said)


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ({}, ""),
        ({"shard": 0}, "shard 0 of 3"),
        ({"shard": 3}, "shard 3 of 3"),
        ({"version": -2}, "weights -2"),
        ({"seconds": nan}, "no finite"),
        ({"gauges": {"tokens": inf}}, "no finite"),
    ],
)
def test_a_shard_that_reports_is_one_of_the_run_and_its_numbers_can_be_added_up(
    changed: dict, flaw: str
):
    sound = ShardState(shard=2, version=-1, seconds=0.0, engines=[], gauges={"tokens": 1.0})
    found = validate_shard_state(replace(sound, **changed), shards=3) or ""
    assert flaw in found and bool(found) == bool(flaw)
