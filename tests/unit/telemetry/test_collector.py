"""Messages in, lines out: what the collector writes, and what readers of its files get back."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import telemetry
from protocol.codec import decode, encode
from protocol.messages import Stats
from telemetry.collector import open_collector
from telemetry.sinks.metrics_file import MetricsFile, read_metrics, to_line
from telemetry.state import RunState
from telemetry.summary import summarize_run

Values = dict[str, float | str | None]


class Clock:
    """Seconds that only pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A run as its collector sees it."""

    def __init__(self, run_dir: Path, resume: bool = False) -> None:
        self.clock = Clock()
        self.path = run_dir / "metrics.jsonl"
        self.collector = open_collector(run_dir, resume, self.clock)

    def send(self, source: str, event: str, values: Values, after: float = 0.0) -> None:
        self.clock.now += after
        self.collector.handle(Stats(source=source, event=event, values=values))

    def gauge(self, source: str, **values: float) -> None:
        self.send(source, "gauge", values)

    def update(self, number: int, after: float = 1.0, **values: float | None) -> dict:
        self.send("learner", "update", {"update": number, **values}, after)
        return self.lines()[-1]

    def evaluation(self, number: int, **values: float) -> dict:
        self.send("learner", "evaluation", {"update": number, **values})
        return self.lines()[-1]

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.collector.close()


def test_an_update_becomes_one_line_at_once(run: Run) -> None:
    run.send("learner", "update", {"update": 1, "loss": 0.25}, after=12.5)
    assert run.lines() == [{"kind": "update", "update": 1, "wall_seconds": 12.5, "loss": 0.25}]


def test_an_evaluation_becomes_one_line_of_its_own_numbers(run: Run) -> None:
    run.gauge("controller", turns_in_flight=7)
    line = run.evaluation(0, **{"success": 0.5, "success/pick": 0.75})
    assert line == {
        "kind": "evaluation",
        "update": 0,
        "wall_seconds": 0,
        "success": 0.5,
        "success/pick": 0.75,
    }


def test_phases_and_gauges_write_no_line(run: Run) -> None:
    run.send("learner", "phase", {"phase": "training"})
    run.gauge("controller", turns_in_flight=7)
    assert run.lines() == []


def test_an_update_carries_the_latest_gauge_of_every_process(run: Run) -> None:
    run.gauge("controller", turns_in_flight=7)
    run.gauge("controller", turns_in_flight=3)
    run.gauge("engine", version=4)
    line = run.update(1)
    assert (line["turns_in_flight"], line["version"]) == (3, 4)


def test_the_learner_own_number_wins_over_a_gauge(run: Run) -> None:
    run.gauge("controller", version=4)
    assert run.update(1, version=5)["version"] == 5


def test_a_counter_becomes_a_difference_and_a_total(run: Run) -> None:
    run.gauge("controller", generated_tokens=100)
    run.update(1)
    run.gauge("controller", generated_tokens=250)
    line = run.update(2)
    assert (line["generated_tokens"], line["generated_tokens_total"]) == (150, 250)


def test_a_counter_that_starts_again_loses_nothing(run: Run) -> None:
    run.gauge("controller", interventions=10)
    run.gauge("controller", interventions=2)
    assert run.update(1)["interventions_total"] == 12


def test_counters_of_several_processes_add_up(run: Run) -> None:
    run.gauge("controller-0", resamples=10)
    run.gauge("controller-1", resamples=5)
    run.gauge("controller-0", resamples=11)
    assert run.update(1)["resamples_total"] == 16


def test_an_update_own_share_is_counted_up(run: Run) -> None:
    run.update(1, trained_tokens=300)
    line = run.update(2, trained_tokens=200)
    assert (line["trained_tokens"], line["trained_tokens_total"]) == (200, 500)


def test_where_both_are_sent_the_gauge_is_counted_and_nothing_twice(run: Run) -> None:
    run.gauge("controller", interventions=10)
    line = run.update(1, interventions=4)
    assert (line["interventions"], line["interventions_total"]) == (10, 10)


def test_token_rates_are_per_second_since_the_update_before(run: Run) -> None:
    run.gauge("controller", generated_tokens=100)
    run.update(1)
    run.gauge("controller", generated_tokens=500)
    line = run.update(2, after=4.0, trained_tokens=200)
    assert (line["generated_tokens_per_second"], line["trained_tokens_per_second"]) == (100, 50)


def test_a_share_of_time_is_averaged_between_updates(run: Run) -> None:
    for share in (0.0, 0.5, 1.0, 0.5):
        run.gauge("controller", idle_share_engine=share)
    assert run.update(1)["idle_share_engine"] == 0.5
    run.gauge("controller", idle_share_engine=0.25)
    assert run.update(2)["idle_share_engine"] == 0.25


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ("controller", "loop_lag_controller"),
        ("learner-1", "loop_lag_learner"),
        ("actor-12", "loop_lag_actors"),
        ("actors", "loop_lag_actors"),
    ],
)
def test_the_worst_loop_lag_between_updates_is_kept_by_kind_of_process(
    run: Run, source: str, field: str
) -> None:
    for lag in (0.01, 0.5, 0.02):
        run.gauge(source, loop_lag=lag)
    assert run.update(1)[field] == 0.5


def test_a_peak_is_over_with_its_update(run: Run) -> None:
    run.gauge("controller", loop_lag=0.5)
    run.update(1)
    run.gauge("controller", loop_lag=0.125)
    assert run.update(2)["loop_lag_controller"] == 0.125


def test_dropped_episodes_are_counted_by_reason_those_after_the_last_update_too(run: Run) -> None:
    run.update(1, dropped_actor_lost=1, dropped_env_error=2)
    line = run.update(2, dropped_actor_lost=3)
    assert (line["dropped_actor_lost"], line["dropped_actor_lost_total"]) == (3, 4)
    run.send(
        "learner", "dropped", {"dropped_canceled": 8, "dropped_env_error": 1, "wasted_dropped": 20}
    )
    assert run.collector.state.dropped_by_reason() == {
        "env_error": 3,
        "actor_lost": 4,
        "canceled": 8,
    }
    assert run.collector.state.total("wasted_dropped") == 20


def test_a_run_that_goes_on_counts_what_was_canceled_at_its_end_no_more(run: Run) -> None:
    """It plays it."""
    run.update(1, dropped_env_error=2)
    run.send("learner", "dropped", {"dropped_canceled": 8})
    resumed = RunState(0.0, run.collector.state.records)
    assert resumed.dropped_by_reason() == {"env_error": 2}


def test_an_unknown_field_is_kept(run: Run) -> None:
    run.gauge("controller", brand_new=3)
    line = run.update(1, another=4)
    assert (line["brand_new"], line["another"]) == (3, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_becomes_null(run: Run, value: float) -> None:
    run.gauge("controller", queue_leases=value)
    line = run.update(1, kl=value)
    assert (line["kl"], line["queue_leases"]) == (None, None)


@pytest.mark.parametrize("name", ["generated_tokens", "idle_share_engine", "loop_lag_controller"])
@pytest.mark.parametrize("value", [math.nan, None, "much"])
def test_what_is_no_number_does_not_spoil_what_is_summed(
    run: Run, name: str, value: float | str | None
) -> None:
    for sent in (4.0, value, 4.0):
        run.send("controller", "gauge", {name: sent})
    assert run.update(1)[name] == 4


def test_whole_numbers_stay_whole_across_the_wire(run: Run) -> None:
    sent = Stats(source="controller", event="gauge", values={"generated_tokens": 12_345_678})
    run.collector.handle(decode(encode(sent)))
    run.update(1)
    assert '"generated_tokens_total": 12345678,' in run.path.read_text()


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.floats() | st.integers() | st.text(max_size=8) | st.none(),
        max_size=5,
    )
)
def test_any_record_is_one_line_of_strict_json(record: Values) -> None:
    line = to_line(record)
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)).keys() == record.keys()


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "update", "update": 1}\n{"kind": "upd')
    assert read_metrics(path) == [{"kind": "update", "update": 1}]


def test_a_torn_last_line_is_cut_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "update", "update": 1}\n{"kind": "upd')
    file = MetricsFile(path)
    file.append({"kind": "update", "update": 2})
    file.close()
    assert [record["update"] for record in read_metrics(path)] == [1, 2]


def test_a_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    first = Run(tmp_path)
    first.gauge("controller", generated_tokens=100)
    first.update(1, after=60, trained_tokens=80)
    first.evaluation(1, evaluation_tokens=40)
    first.collector.close()

    second = Run(tmp_path, resume=True)
    second.gauge("controller", generated_tokens=30)
    line = second.update(2, after=20, trained_tokens=20)
    assert (line["wall_seconds"], line["generated_tokens"]) == (80, 30)
    assert (line["generated_tokens_total"], line["trained_tokens_total"]) == (130, 100)
    assert second.evaluation(2, evaluation_tokens=5)["evaluation_tokens_total"] == 45


def test_tokens_of_an_evaluation_after_the_last_update_are_not_lost_by_a_resume(
    tmp_path: Path,
) -> None:
    first = Run(tmp_path)
    first.gauge("controller", generated_tokens=100)
    first.update(1)
    first.gauge("controller", generated_tokens=140)
    first.evaluation(1, evaluation_tokens=40)
    first.collector.close()
    second = Run(tmp_path, resume=True)
    second.gauge("controller", generated_tokens=30)
    assert second.update(2)["generated_tokens_total"] == 170


def test_updates_that_a_resumed_run_does_again_count_once(tmp_path: Path) -> None:
    first = Run(tmp_path)
    for number in (1, 2, 3):
        first.update(number, loss=1.0)
    first.evaluation(3, success=0.1)
    first.collector.close()

    second = Run(tmp_path, resume=True)
    second.update(2, loss=2.0)
    expected = [("update", 1, 1.0), ("update", 2, 2.0)]
    for records in (read_metrics(second.path), second.collector.state.records):
        assert [
            (record["kind"], record["update"], record.get("loss")) for record in records
        ] == expected


def test_what_a_resumed_run_does_again_adds_to_no_total(tmp_path: Path) -> None:
    first = Run(tmp_path)
    for number in (1, 2, 3):
        first.gauge("controller", generated_tokens=100 * number)
        first.update(number, trained_tokens=10, token_age_mean=1.0)
    first.collector.close()

    second = Run(tmp_path, resume=True)
    second.gauge("controller", generated_tokens=50)
    second.update(2, trained_tokens=10, token_age_mean=1.0)
    line = second.update(3, trained_tokens=10, token_age_mean=1.0)
    assert (line["trained_tokens_total"], line["trained_tokens"]) == (30, 10)
    assert line["generated_tokens_total"] == 350, (
        "what was generated is generated, whether it was of use or not"
    )
    assert summarize_run(second.collector.state, 0.0)["mean_token_age"] == 1.0


def test_an_evaluation_that_arrives_late_rolls_nothing_back(run: Run) -> None:
    for number in (1, 2, 3):
        run.update(number)
    run.evaluation(2, success=0.5)
    run.update(4)
    assert [record["update"] for record in run.collector.state.records] == [1, 2, 3, 2, 4]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(run_dir / "tensorboard"))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_shows_the_settings_as_text(tmp_path: Path) -> None:
    """The settings of a run stand beside its curves."""
    open_collector(tmp_path, settings={"run.seed": 3}).close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    (event,) = reader.Tensors("settings/text_summary")
    assert b"| run.seed | 3 |" in event.tensor_proto.string_val[0]
    assert reader.SummaryMetadata("settings/text_summary").plugin_data.plugin_name == "text"


def test_tensorboard_reads_what_was_written(run: Run, tmp_path: Path) -> None:
    run.evaluation(0, success=0.25)
    run.update(1, entropy=0.5, brand_new=3.0)
    run.update(2, entropy=math.nan)
    run.update(3, entropy=0.75)
    written = scalars(tmp_path)
    assert written["evaluation/success"] == [(0, 0.25)]
    assert written["policy/entropy"] == [(1, 0.5), (3, 0.75)]
    assert written["other/brand_new"] == [(1, 3.0)]


@pytest.mark.slow
def test_telemetry_imports_no_torch(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import pathlib, sys, telemetry.collector, telemetry.probes.clocks, "
            "telemetry.progress, telemetry.summary",
            "telemetry.collector.open_collector(pathlib.Path(sys.argv[1])).close()",
            "print(sorted({'torch', 'vllm', 'tensorflow'} & set(sys.modules)))",
        ]
    )
    root = Path(telemetry.__file__).parent.parent
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
