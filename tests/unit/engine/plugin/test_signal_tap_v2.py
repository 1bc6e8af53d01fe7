"""The tap behind vLLM's V2 interface, driven with tensors on a CPU in the form of its context."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

from controller.rules.thinking import RuleSpec, ThinkingSettings
from engine.constants import (
    RULE_KEY,
    TAP_ENDPOINT_VARIABLE,
    TURN_ID_KEY,
)
from engine.plugin.signal_tap_v2 import SignalTapV2
from protocol.arrays import FLOAT32, INT32, unpack
from tests.fixtures.messages import make_tags
from tests.fixtures.tap import TapBench

VOCABULARY = 16
SLOTS = 8
END = 15
"""The token that ends responses."""


class Request:
    """A request as the runner holds it: a slot, a prompt, and what was sampled."""

    def __init__(self, slot: int, prompt: int) -> None:
        self.slot = slot
        self.prompt = prompt
        self.response: list[int] = []


class Bench(TapBench):
    """A tap, the controller's socket, and a runner's buffers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.prompt_len = np.zeros(SLOTS, np.int32)
        states = LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            vocab_size=VOCABULARY,
            all_token_ids=None,
            prompt_len=SimpleNamespace(np=self.prompt_len),
            prefill_len=None,
            total_len=None,
        )
        self.tap = SignalTapV2(vllm_config(), states)

    def add(
        self,
        turn: str | None,
        slot: int,
        prompt: int = 5,
        temperature: float = 1.0,
        rule: RuleSpec | None = None,
    ) -> Request:
        self.prompt_len[slot] = prompt
        extra = (
            None
            if turn is None
            else {TURN_ID_KEY: turn}
            | ({} if rule is None else {RULE_KEY: msgspec.json.encode(rule).decode()})
        )
        params = SamplingParams(
            extra_args=extra, temperature=temperature, stop_token_ids=[END], max_tokens=100
        )
        self.tap.add_request(slot, params)
        return Request(slot, prompt)

    def step(
        self,
        *requests: Request,
        computed: dict[int, int] | None = None,
        logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One step of a batch in this order.

        `computed`: {slot: tokens computed} of those that are not at the end of what they have.
        """
        lengths = [(computed or {}).get(r.slot, r.prompt + len(r.response)) for r in requests]
        slots = np.array([r.slot for r in requests], np.int32)
        rows = torch.arange(len(requests))
        context = LogitsContext(
            expanded_idx_mapping=torch.from_numpy(slots),
            idx_mapping=torch.from_numpy(slots),
            idx_mapping_np=slots,
            expanded_local_pos=torch.zeros_like(rows),
            input_ids=torch.tensor([r.response[-1] if r.response else 1 for r in requests]),
            pos=torch.tensor(lengths) - 1,
            seq_lens_upper_bound_np=np.array(lengths, np.int32),
        )
        return self.tap.apply(
            torch.zeros(len(requests), VOCABULARY) if logits is None else logits, context
        )

    def rows(self) -> list[tuple[str, int, int, int]]:
        """Return (turn, position, previous, forced) of each row of the next frame.

        It is empty when none arrives.
        """
        frame = self.receive_frame()
        if frame is None:
            return []
        self.entropy = unpack(frame.entropy, FLOAT32).tolist()
        columns = (
            unpack(column, INT32).tolist()
            for column in (frame.position, frame.previous, frame.forced)
        )
        return list(zip(frame.turn_ids, *columns, strict=True))

    def close(self) -> None:
        self.tap.tap.socket.close()
        self.disconnect()


def vllm_config(
    workers: int = 1, stages: int = 1, sharded: bool = False, speculative: object = None
) -> SimpleNamespace:
    parallel = SimpleNamespace(
        world_size=workers * stages,
        pipeline_parallel_size=stages,
        enable_batch_sharded_sampling=sharded,
    )
    return SimpleNamespace(
        parallel_config=parallel, speculative_config=speculative, model_config=None
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.close()


def possible(logits: torch.Tensor, row: int) -> list[int]:
    return (logits[row] > float("-inf")).nonzero().flatten().tolist()


def test_it_is_what_the_runner_takes() -> None:
    assert issubclass(SignalTapV2, LogitsProcessor)


def test_without_an_endpoint_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TAP_ENDPOINT_VARIABLE, raising=False)
    tap = SignalTapV2(vllm_config(), None)
    logits = torch.randn(2, VOCABULARY)
    assert tap.add_request(0, SamplingParams(extra_args={TURN_ID_KEY: "a"})) is False
    assert tap.apply(logits, None) is logits


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"workers": 2}, "--enable-batch-sharded-sampling"),
        ({"stages": 2, "sharded": True}, "--pipeline-parallel-size"),
        ({"workers": 2, "sharded": True}, "compute_logits_local, which vLLM's Other lacks"),
        ({"speculative": object()}, "--speculative-config"),
    ],
)
def test_tap_v2_that_cannot_watch_refuses_with_the_option(
    config: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TAP_ENDPOINT_VARIABLE, "tcp://127.0.0.1:1")
    monkeypatch.setattr(
        "vllm.model_executor.model_loader.utils.get_model_cls", lambda _: type("Other", (), {})
    )
    with pytest.raises(ValueError, match=said):
        SignalTapV2(vllm_config(**config), None)


def test_watched_requests_are_reported_in_whatever_order_the_rows_are(bench: Bench) -> None:
    a = bench.add("a", 3)
    other = bench.add(None, 0)
    b = bench.add("b", 1, prompt=7)
    bench.step(a, other, b)
    assert bench.rows() == [("a", 0, -1, -1), ("b", 0, -1, -1)]
    a.response.append(4), b.response.append(9)
    bench.step(b, a)
    assert bench.rows() == [("b", 1, 9, -1), ("a", 1, 4, -1)]


def test_signals_are_of_the_distribution_after_temperature(bench: Bench) -> None:
    logits = torch.linspace(0, 3, 2 * VOCABULARY).reshape(2, VOCABULARY)
    expected = [
        torch.distributions.Categorical(logits=row / t).entropy().item()
        for row, t in zip(logits, (1.0, 0.5), strict=True)
    ]
    bench.step(bench.add("a", 0), bench.add("b", 1, temperature=0.5), logits=logits.clone())
    bench.rows()
    assert bench.entropy == pytest.approx(expected, abs=1e-5)


def test_a_steer_forces_its_queue_and_nothing_else(bench: Bench) -> None:
    a = bench.add("a", 0)
    b = bench.add("b", 1)
    bench.step(a, b)
    bench.rows()
    bench.steer("b", [5, 6])
    for expected in ([5], [6], list(range(VOCABULARY))):
        a.response.append(2), b.response.append(expected[0])
        out = bench.step(b, a)  # the position after the token that was sampled meanwhile
        assert possible(out, 1) == list(range(VOCABULARY))
        if len(expected) == 1:
            assert possible(out, 0) == expected
    assert len(possible(out, 0)) == VOCABULARY


def test_a_steer_sees_the_token_that_was_sampled_last(bench: Bench) -> None:
    a = bench.add("a", 0)
    bench.step(a)
    bench.rows()
    bench.steer("a", [5], unless=7)
    a.response.append(7)
    assert len(possible(bench.step(a), 0)) == VOCABULARY


def test_chunks_of_a_prefill_are_not_reported(bench: Bench) -> None:
    a = bench.add("a", 0, prompt=12)
    bench.step(a, computed={0: 8})
    assert bench.rows() == []
    bench.step(a)
    assert bench.rows() == [("a", 0, -1, -1)]


def test_tap_v2_after_an_end_token_reports_no_further_row(bench: Bench) -> None:
    """With asynchronous scheduling a step may have begun before vLLM knows of an end token."""
    a = bench.add("a", 0)
    b = bench.add("b", 1)
    bench.step(a, b)
    bench.rows()
    a.response.append(END), b.response.append(2)
    bench.step(a, b)
    assert bench.rows() == [("b", 1, 2, -1)]


def test_tap_v2_of_a_turn_owned_elsewhere_reports_nothing_of_it(bench: Bench) -> None:
    """With batch-sharded sampling each worker hears of all requests, and has rows of its own."""
    mine = bench.add("mine", 2)
    bench.add("of another worker", 3)
    bench.step(mine)
    assert bench.rows() == [("mine", 0, -1, -1)]


def test_a_slot_belongs_to_who_has_it_now(bench: Bench) -> None:
    a = bench.add("a", 2)
    bench.step(a)
    bench.rows()
    b = bench.add("b", 2, prompt=3)
    bench.step(b)
    assert bench.rows() == [("b", 0, -1, -1)]
    unwatched = bench.add(None, 2)
    bench.step(unwatched)
    assert bench.rows() == []


@pytest.mark.parametrize("slot", [0, 4])
def test_forced_tokens_and_positions_survive_preemption(bench: Bench, slot: int) -> None:
    a = bench.add("a", 0)
    for token in (3, 4):
        bench.step(a)
        bench.rows()
        a.response.append(token)
    bench.steer("a", [5, 6])
    assert possible(bench.step(a), 0) == [5]
    assert bench.rows() == [("a", 2, 4, 5)]
    a.response.append(5)
    again = bench.add(
        "a", slot
    )  # preempted, and back: the prompt and the response are computed again, in two chunks
    again.response = a.response
    bench.step(again, computed={slot: 6})
    assert bench.rows() == []
    assert possible(bench.step(again), 0) == [6]
    assert bench.rows() == [("a", 3, 5, 6)]


def test_a_rule_is_carried_out_at_once(bench: Bench) -> None:
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 0, 0.5, 1, 20)
    rule = RuleSpec(settings, make_tags(1, 2), [2, 9])
    a = bench.add("a", 0, rule=rule)
    bench.step(a)  # nothing thought yet
    a.response.append(1)  # <think>
    assert possible(bench.step(a), 0) == [2]  # uniform twice: nothing changed
    a.response.append(2)
    assert possible(bench.step(a), 0) == [9]
    a.response.append(9)
    assert len(possible(bench.step(a), 0)) == VOCABULARY
