"""The tap as vLLM drives it: rows that come, move and leave, prefills in chunks, preemption."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

from engine.constants import TAP_ENDPOINT_VARIABLE, TURN_ID_KEY
from engine.plugin.signal_socket import HIGH_WATER
from engine.plugin.signal_tap import SignalTap
from protocol.arrays import INT32, unpack
from tests.fixtures.tap import TapBench

VOCABULARY = 16
CPU = torch.device("cpu")


END = 15
"""The token that ends responses."""


def settings(
    chunked: bool = False, workers: int = 1, speculative: object = None
) -> SimpleNamespace:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(enable_chunked_prefill=chunked),
        parallel_config=SimpleNamespace(world_size=workers),
        speculative_config=speculative,
    )


class Bench(TapBench):
    """A tap, the controller's socket, and requests as vLLM's runner has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
        super().__init__(monkeypatch)
        self.tap = SignalTap(settings(chunked), CPU, False)
        self.size = 0

    def update(
        self, *, added: tuple = (), removed: tuple = (), moved: tuple = (), size: int
    ) -> None:
        """`added`: (row, turn id or None, list of response tokens)."""
        new = [
            (
                row,
                SamplingParams(
                    extra_args=None if turn is None else {TURN_ID_KEY: turn},
                    stop_token_ids=[END],
                ),
                [1, 2],
                output,
            )
            for row, turn, output in added
        ]
        self.size = size
        self.tap.update_state(
            BatchUpdate(batch_size=size, removed=list(removed), added=new, moved=list(moved))
        )

    def step(self) -> torch.Tensor:
        """The logits that come out of a step with equal logits everywhere."""
        return self.tap.apply(torch.zeros(self.size, VOCABULARY))

    def rows(self) -> list[tuple[str, int, int]]:
        """(turn, position, forced) of each row of the next frame; nothing when none arrives."""
        frame = self.receive_frame()
        if frame is None:
            return []
        return list(
            zip(
                frame.turn_ids,
                unpack(frame.position, INT32).tolist(),
                unpack(frame.forced, INT32).tolist(),
                strict=True,
            )
        )

    def close(self) -> None:
        self.tap.tap.socket.close()
        self.disconnect()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch, chunked=False)
    yield made
    made.close()


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch, chunked=True)
    yield made
    made.close()


def possible(logits: torch.Tensor, row: int) -> list[int]:
    """Tokens that can still be sampled in a row."""
    return (logits[row] > float("-inf")).nonzero().flatten().tolist()


def test_the_tap_changes_what_is_most_likely(bench: Bench) -> None:
    assert not bench.tap.is_argmax_invariant()


def test_without_an_endpoint_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TAP_ENDPOINT_VARIABLE, raising=False)
    tap = SignalTap(settings(), CPU, False)
    logits = torch.randn(2, VOCABULARY)
    assert tap.apply(logits) is logits


@pytest.mark.parametrize(
    ("config", "said"),
    [({"workers": 2}, "one worker"), ({"speculative": object()}, "--speculative-config")],
)
def test_tap_that_cannot_watch_refuses_with_the_option(
    config: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TAP_ENDPOINT_VARIABLE, "tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match=said):
        SignalTap(settings(**config), CPU, False)


def test_only_requests_with_a_turn_id_are_reported(bench: Bench) -> None:
    bench.update(added=((0, None, []), (1, "a", []), (2, "b", [7, 8])), size=3)
    bench.step()
    assert bench.rows() == [("a", 0, -1), ("b", 2, -1)]


def test_nothing_is_sent_for_a_batch_without_turns(bench: Bench) -> None:
    bench.update(added=((0, None, []),), size=1)
    bench.step()
    assert bench.rows() == []


def test_turns_keep_their_identity_when_rows_move(bench: Bench) -> None:
    bench.update(added=((0, "a", []), (1, "b", []), (2, "c", [])), size=3)
    bench.update(removed=(0,), moved=((2, 0, MoveDirectionality.UNIDIRECTIONAL),), size=2)
    bench.step()
    assert bench.rows() == [("c", 0, -1), ("b", 0, -1)]
    bench.update(moved=((0, 1, MoveDirectionality.SWAP),), size=2)
    bench.step()
    assert bench.rows() == [("b", 0, -1), ("c", 0, -1)]
    bench.update(
        added=((0, "d", []),), size=2
    )  # takes the row of one that is not reported as removed
    bench.step()
    assert bench.rows() == [("d", 0, -1), ("c", 0, -1)]


def test_forced_tokens_follow_a_turn_to_another_row(bench: Bench) -> None:
    output: list[int] = []
    bench.update(added=((0, "a", []), (1, "b", output)), size=2)
    bench.step()
    bench.rows()
    bench.steer("b", [5, 6])
    assert possible(bench.step(), 1) == [5]
    output.append(5)
    bench.update(removed=(0,), moved=((1, 0, MoveDirectionality.UNIDIRECTIONAL),), size=1)
    assert possible(bench.step(), 0) == [6]
    output.append(6)
    assert len(possible(bench.step(), 0)) == VOCABULARY


def test_forced_tokens_survive_preemption(bench: Bench) -> None:
    output = [3]
    bench.update(added=((0, "a", output),), size=1)
    bench.step()
    bench.rows()
    bench.steer("a", [5, 6])
    bench.step()
    output.append(5)
    bench.update(removed=(0,), size=0)
    bench.step()
    bench.update(added=((0, "a", [3, 5]),), size=1)  # with a new list
    assert possible(bench.step(), 0) == [6]


def test_a_steer_that_arrives_during_preemption_is_not_lost(bench: Bench) -> None:
    bench.update(added=((0, "a", [3]), (1, "b", [])), size=2)
    bench.step()
    bench.rows()
    bench.update(removed=(0,), moved=((1, 0, MoveDirectionality.UNIDIRECTIONAL),), size=1)
    bench.steer("a", [9])
    bench.step()
    bench.update(added=((1, "a", [3]),), size=2)
    assert possible(bench.step(), 1) == [9]


def test_a_second_steer_follows_the_first(bench: Bench) -> None:
    output: list[int] = []
    bench.update(added=((0, "a", output),), size=1)
    bench.step()
    bench.rows()
    bench.steer("a", [5, 6])
    bench.steer("a", [7])
    for expected in (5, 6, 7):
        assert possible(bench.step(), 0) == [expected]
        output.append(expected)
    assert len(possible(bench.step(), 0)) == VOCABULARY


def test_chunks_of_a_prefill_are_not_reported(chunked: Bench) -> None:
    output: list[int] = []
    chunked.update(added=((0, "a", output),), size=1)
    chunked.step()  # a chunk: nothing is sampled
    assert chunked.rows() == []
    chunked.step()  # the last chunk
    assert chunked.rows() == []
    output.append(4)
    chunked.step()
    assert chunked.rows() == [("a", 0, -1), ("a", 1, -1)]
    output.append(4)
    chunked.step()
    assert chunked.rows() == [("a", 2, -1)]


def test_a_turn_of_one_token_is_reported_when_it_has_left(chunked: Bench) -> None:
    output: list[int] = []
    chunked.update(added=((0, "a", output), (1, None, [])), size=2)
    chunked.step()
    output.append(4)
    chunked.update(removed=(0,), moved=((1, 0, MoveDirectionality.UNIDIRECTIONAL),), size=1)
    chunked.step()
    assert chunked.rows() == [("a", 0, -1)]


def test_a_turn_whose_row_is_filled_by_a_move_has_left(chunked: Bench) -> None:
    """Nothing else says so, and its last row is reported."""
    output: list[int] = []
    other: list[int] = [3]
    chunked.update(added=((0, "a", output), (1, "b", other)), size=2)
    chunked.step()
    output.append(4)
    other.append(5)
    chunked.update(moved=((1, 0, MoveDirectionality.UNIDIRECTIONAL),), size=1)
    chunked.step()
    assert chunked.rows() == [("a", 0, -1), ("b", 1, -1), ("b", 2, -1)]


def test_a_turn_that_leaves_within_its_prefill_is_not_reported(chunked: Bench) -> None:
    chunked.update(added=((0, "a", []), (1, None, [])), size=2)
    chunked.step()
    chunked.update(removed=(0,), moved=((1, 0, MoveDirectionality.UNIDIRECTIONAL),), size=1)
    chunked.step()
    assert chunked.rows() == []


def test_tap_after_an_end_token_reports_no_further_row(bench: Bench) -> None:
    """With asynchronous scheduling a step may have begun before vLLM knows of an end token."""
    output: list[int] = []
    bench.update(added=((0, "a", output), (1, "b", [])), size=2)
    bench.step()
    assert bench.rows() == [("a", 0, -1), ("b", 0, -1)]
    output.append(END)
    bench.step()
    assert bench.rows() == [("b", 0, -1)]


def test_tap_of_two_chunked_tokens_reports_both_without_a_further_step(chunked: Bench) -> None:
    """So the start-up probe, which asks for two, finds the tap of an engine that then idles."""
    output: list[int] = []
    chunked.update(added=((0, "probe", output),), size=1)
    chunked.step()
    output.append(4)
    chunked.step()
    assert chunked.rows() == [("probe", 0, -1), ("probe", 1, -1)]


def test_a_forced_token_is_not_used_up_by_a_chunk(chunked: Bench) -> None:
    other: list[int] = []
    chunked.update(added=((0, "a", [1]), (1, "b", other)), size=2)
    chunked.step()
    other.append(2)
    chunked.step()
    chunked.rows()
    chunked.steer("a", [5])
    assert possible(chunked.step(), 0) == [5]
    assert possible(chunked.step(), 0) == [5]


def test_a_controller_that_does_not_read_never_blocks_the_engine(bench: Bench) -> None:
    bench.update(added=((0, "a", []),), size=1)
    bench.disconnect()
    for _ in range(3 * HIGH_WATER):
        bench.step()
    assert bench.tap.tap.socket.dropped_frames > 0
