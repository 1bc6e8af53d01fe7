"""`run.py sweep`: what is run, what is compared, and how it goes on after it was killed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from math import comb
from pathlib import Path

import pytest
from rich.console import Console

import supervisor.cli.sweep
from config import ConfigError
from learner.checkpoint import by_update
from protocol.lifetime import dying_with_parent
from supervisor.cli.main import main
from supervisor.cli.sweep import Cell, build_plan, count_updates, is_finished, sweep
from supervisor.cli.sweep_tables import build_figures, effects_table
from supervisor.job import lock_directory
from telemetry.analysis.compare_runs import (
    compare_runs,
    ideal_speed_up,
    run_measures,
    seconds_per_update,
)
from telemetry.analysis.effects import compute_effects
from telemetry.analysis.intervals import median_interval
from telemetry.html.sweep_page import numeric_settings, render_sweep
from tests.fixtures import ROOT
from tests.fixtures.runs import options, processes, small_engine, with_shadows


def test_settings_with_several_values_are_varied_and_seeds_are_the_outer_loop() -> None:
    planned = build_plan(
        {"max-staleness": "0,2", "control": "off,t2po", "learner.groups_per_update": "4"}, seeds=2
    )
    assert planned.fixed == {"learner.groups_per_update": "4"}
    names = [cell.name for cell in planned.cells()]
    assert len(set(names)) == len(names) == 8
    assert (
        names[0] == "max_staleness=0,control=off,seed=0"
        and names[4] == "max_staleness=0,control=off,seed=1"
    )
    arguments = planned.arguments(planned.cells()[-1])
    assert arguments == {
        "learner.groups_per_update": "4",
        "learner.max_staleness": "2",
        "control.mode": "t2po",
        "run.seed": "1",
    }


def test_a_list_is_one_value() -> None:
    planned = build_plan(
        {"env.settings.task_types": "pick_and_place_simple,look_at_obj_in_light"}, seeds=1
    )
    assert planned.varied == {} and len(planned.cells()) == 1


def test_recipes_that_go_together_are_joined_by_a_plus() -> None:
    planned = build_plan({"recipe": "webshop+t2po-paper,webshop+t2po-code"}, seeds=1)
    first, second = planned.cells()
    assert second.name == "recipe=webshop+t2po-code,seed=0"
    assert planned.arguments(first)["recipe"] == "webshop,t2po-paper"
    assert planned.config(second).env.name == "webshop"
    assert planned.config(second).control.t2po.score == "code"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"recipe": "webshop,webshp"}, "recipe=webshp,seed=0: .* did you mean webshop"),
        ({"max_staleness": "0,-1"}, r"sweep: max_staleness=-1,seed=0: learner\.max_staleness"),
        ({"max_stalenes": "0,1"}, "there is no setting max_stalenes"),
        ({"seed": "0,1"}, r"run\.seed is set for each run; use --seeds N"),
        ({"run_dir": "x"}, r"run\.dir is set for each run"),
        ({"control": "off,off"}, "has a value twice"),
        ({"env": "chess"}, "unknown environment"),
        ({"env": "chess,alfworld"}, "unknown environment"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_plan(overrides, seeds=1)


def records(
    seconds: float, wait: float, train: float, success: float, pairs: int = 50
) -> list[dict]:
    """Make records of a run with three updates, the last two of which took `seconds` each."""
    updates = [
        {
            "kind": "update",
            "update": u,
            "wall_seconds": 100 + seconds * u,
            "seconds_wait": wait,
            "seconds_train": train,
            "episodes": 8,
            "seconds_publish": 0.0,
            "success": 0.5,
            "training_tokens": 1000 * u,
            "known_pairs": pairs,
            "repeated_pairs": 0.25,
            "wasted_tokens": 10,
            "generated_tokens": 100,
        }
        for u in (1, 2, 3)
    ]
    ends = [
        {"kind": "evaluation", "update": u, "wall_seconds": 0.0, "success": s, "episodes": 100}
        for u, s in ((0, 0.2), (3, success))
    ]
    return [ends[0], *updates, ends[1]]


def test_measures_of_a_run() -> None:
    found = run_measures(records(10, 4, 6, 0.8))
    assert found["success"] == 0.8 and found["area"] == pytest.approx(0.5)
    assert found["successes_per_million"] == pytest.approx(1e6 * 12 / 3000)
    assert (
        found["pairs_per_thousand"] == pytest.approx(50 / 3)
        and found["repeated_pairs"] == 0.25
        and found["wasted"] == 0.1
    )
    assert found["successes_per_hour"] == pytest.approx(3600 * 4 / 10)


def test_an_updates_seconds_are_between_updates_without_an_evaluation() -> None:
    some = records(10, 4, 6, 0.8)
    late = [
        *some[:3],
        {"kind": "evaluation", "update": 2, "wall_seconds": 119.0, "success": 0.5},
        some[3] | {"wall_seconds": 500.0},
    ]
    assert seconds_per_update(some) == seconds_per_update(late) == 10
    assert seconds_per_update(some[:2]) is None and seconds_per_update([]) is None


def test_speed_up_is_over_the_synchronous_run_that_differs_in_nothing_else() -> None:
    runs = [
        ({"control": "off", "max_staleness": "0"}, records(10, 4, 6, 0.8)),
        ({"control": "off", "max_staleness": "1"}, records(6.5, 0.5, 6, 0.8)),
        ({"control": "t2po", "max_staleness": "1"}, records(5, 0, 5, 0.8)),
    ]
    first, second, third = compare_runs(runs)
    assert (first.speed_up, second.speed_up) == pytest.approx(
        (1.0, 10 / 6.5)
    ) and third.speed_up is None
    assert second.ideal == pytest.approx(10 / 6) and second.reached == pytest.approx(6 / 6.5)
    assert ideal_speed_up([]) is None


def test_the_ideal_leaves_out_what_waited_for_an_evaluation() -> None:
    some = records(10, 4, 6, 0.8)
    between = {
        "kind": "evaluation",
        "update": 2,
        "wall_seconds": 0.0,
        "success": 0.5,
        "episodes": 8,
    }
    assert ideal_speed_up([*some[:3], between, some[3] | {"seconds_wait": 400.0}]) == pytest.approx(
        10 / 6
    )


def test_seeds_are_pooled_with_their_range_and_success_with_its_interval() -> None:
    (row,) = compare_runs(
        [({"a": "1"}, records(10, 4, 6, 0.8, 40)), ({"a": "1"}, records(20, 4, 6, 0.6, 60))]
    )
    assert row.seeds == 2 and row.values["seconds_per_update"] == (15, 10, 20)
    mean, low, high = row.values["success"]
    assert (
        mean == pytest.approx(0.7)
        and low == pytest.approx(0.633, abs=1e-3)
        and high == pytest.approx(0.759, abs=1e-3)
    )  # of 200


def test_a_page_has_a_row_for_each_and_a_chart_over_each_number() -> None:
    rows = compare_runs(
        [
            ({"max_staleness": s, "control": c}, records(10, 4, 6, 0.8))
            for s in "01"
            for c in ("off", "<b>t2po</b>")
        ]
    )
    html = render_sweep("<i>name</i>", rows, [])
    assert numeric_settings(rows) == ["max_staleness"] and html.count("<tr>") == 5
    assert (
        "<b>t2po" not in html
        and "<i>name" not in html
        and html.count('class="chart"') == len(rows[0].values)
    )


def test_an_effect_is_of_runs_that_differ_in_one_setting_and_have_one_seed() -> None:
    runs = [
        ({"max_staleness": "0", "control": "off"}, 0, records(10, 4, 6, 0.8, pairs=50)),
        ({"max_staleness": "0", "control": "t2po"}, 0, records(10, 4, 6, 0.7, pairs=40)),
        ({"max_staleness": "4", "control": "off"}, 0, records(10, 4, 6, 0.85, pairs=60)),
        ({"max_staleness": "0", "control": "off"}, 1, records(10, 4, 6, 0.5, pairs=100)),
        ({"max_staleness": "4", "control": "off"}, 1, records(10, 4, 6, 0.4, pairs=110)),
        (
            {"max_staleness": "4", "control": "t2po"},
            1,
            records(10, 4, 6, 0.4, pairs=1),
        ),  # with its seed, no run has control alone
    ]
    older, controlled = compute_effects(runs)
    assert (older.setting, older.base, older.value) == ("max_staleness", "0", "4")
    pairs = older.changes["pairs_per_thousand"]  # relative: 60 / 50 and 110 / 100
    assert pairs.median == pytest.approx(0.15) and (
        pairs.low,
        pairs.high,
        pairs.up,
        pairs.down,
        pairs.pairs,
    ) == (None, None, 2, 0, 2)
    success = older.changes["success"]  # in points: 0.05 and -0.1
    assert success.median == pytest.approx(-0.025) and (success.up, success.down) == (1, 1)
    assert (controlled.setting, controlled.base, controlled.value) == ("control", "off", "t2po")
    assert (
        controlled.changes["pairs_per_thousand"].pairs == 2
    )  # of seed 0 and, at staleness 4, of seed 1


def test_settings_of_which_no_run_has_its_like_have_no_effects() -> None:
    assert (
        compute_effects([])
        == []
        == compute_effects(
            [({"a": "1"}, 0, records(10, 4, 6, 0.8)), ({"a": "2"}, 1, records(10, 4, 6, 0.8))]
        )
    )


@pytest.mark.parametrize("count", range(1, 30))
def test_median_interval_has_its_coverage_and_is_the_shortest_that_does(
    count: int,
) -> None:
    """The median's interval has its coverage, and is the shortest that does.

    Of values with the median 0, each is below it with probability 1/2: all numbers of those below,
    each as often as it comes.
    """

    def holds(interval: Callable[[list[float]], tuple[float, float] | None]) -> float:
        below = (
            [-1.0 - i for i in range(k)] + [1.0 + i for i in range(count - k)]
            for k in range(count + 1)
        )
        found = (interval(values) or (0.0, 0.0) for values in below)
        return sum(
            comb(count, k) / 2**count * (low <= 0 <= high) for k, (low, high) in enumerate(found)
        )

    def shorter(values: list[float]) -> tuple[float, float]:
        low, high = median_interval(values)
        ordered = sorted(values)
        return ordered[ordered.index(low) + 1], ordered[ordered.index(high) - 1]

    if count < 6:
        assert median_interval([float(i) for i in range(count)]) is None
    else:
        assert holds(median_interval) >= 0.95 > holds(shorter)


def test_what_a_setting_changes_is_in_the_table_the_page_and_the_figures() -> None:
    runs = [
        ({"a": a}, seed, records(10, 4, 6, 0.8, 50 + 10 * (a == "<2>")))
        for a in ("1", "<2>")
        for seed in range(6)
    ]
    rows = compare_runs([(settings, of_run) for settings, _, of_run in runs])
    found = compute_effects(runs)
    console = Console(width=170, record=True, file=io.StringIO())
    console.print(effects_table(found))
    said = console.export_text()
    assert (
        "a 1 → <2>" in said
        and "+20.0%" in said
        and "+20.0 to +20.0" in said
        and "6 up, 0 down" in said
    )
    html = render_sweep("name", rows, found)
    assert "a 1 → &lt;2&gt;" in html and "+20.0 %" in html and "6 ↑ 0 ↓" in html
    (written,) = json.loads(json.dumps(build_figures(rows, found)))["effects"]
    fifth = pytest.approx(0.2)
    assert written["pairs_per_thousand"] == {
        "median": fifth,
        "low": fifth,
        "high": fifth,
        "up": 6,
        "down": 0,
        "pairs": 6,
    }


@pytest.mark.slow
async def test_a_sweep_that_was_killed_goes_on_where_it_stopped(
    tmp_path: Path, small_policy: Path
) -> None:
    directory = tmp_path / "sweep"
    first, second = (directory / Cell((("max_staleness", value),), 0).name for value in "01")
    async with small_engine(small_policy) as settings:
        settings |= {"run.max_updates": "3", "max_staleness": "0,1"}
        process = await begun(directory, settings)
        async with asyncio.timeout(120):
            while count_updates(second) < 1:
                assert process.returncode is None, (await process.stdout.read()).decode()
                await asyncio.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        async with asyncio.timeout(30):
            while any(str(directory) in command for _, command in processes()):
                await asyncio.sleep(0.05)
        assert is_finished(first) and not is_finished(second)
        before = (first / "metrics.jsonl").stat().st_mtime_ns
        process = await begun(
            directory, settings, with_shadows(tmp_path / "mine", "random")
        )  # where none of ours is another one
        async with asyncio.timeout(120):
            out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert "2 of 2 runs" in out.decode() and (first / "metrics.jsonl").stat().st_mtime_ns == before
    assert count_updates(second) == 3
    assert len(by_update(second)) == 3  # those of the process that was killed, too
    written = json.loads((directory / "figures.json").read_text())
    assert [row["settings"] for row in written["rows"]] == [
        {"max_staleness": "0"},
        {"max_staleness": "1"},
    ]
    assert [effect["setting"] for effect in written["effects"]] == ["max_staleness"]
    assert written["rows"][1]["speed_up"] > 0 and "<table" in (directory / "sweep.html").read_text()


async def begun(
    directory: Path, settings: dict[str, str], cwd: Path = ROOT
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "run.py"),
        "sweep",
        str(directory),
        *options(settings),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=dying_with_parent(),
    )


@pytest.mark.parametrize(("slots", "waits"), [(1, None), (2, "PASSIVE")])
def test_runs_beside_each_other_do_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, waits: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    started = []
    monkeypatch.setattr(
        supervisor.cli.sweep,
        "spawn",
        lambda *arguments: started.append(arguments[3].get("OMP_WAIT_POLICY")) or Gone(),
    )
    assert (
        sweep(
            tmp_path / "sweep",
            build_plan({"control": "off,t2po"}, seeds=1),
            slots,
            Console(quiet=True),
        )
        == 1
    )
    assert started == [waits, waits]


class Gone:
    """A process that has ended at once."""

    ended = True
    log = Path("/dev/null")


def test_a_run_that_fails_is_named_with_its_last_words_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "[/red]"
    model.mkdir(parents=True)  # a path that reads like markup
    assert main(["sweep", str(tmp_path / "sweep"), "--model", str(model)]) == 1
    said = capsys.readouterr().out
    assert (
        "seed=0 failed" in said
        and "[/red]" in said
        and "no Hugging Face" in said.replace("\n", " ")
    )


def test_two_do_not_make_the_runs_of_one_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(
        json.dumps({"varied": {"control.mode": ["off", "t2po"]}, "fixed": {}, "seeds": 1})
    )
    lock = lock_directory(tmp_path)
    try:
        assert main(["sweep", str(tmp_path), "--control", "off,t2po"]) == 2
    finally:
        os.close(lock)
    assert "are being made" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "sweep.json"]


def test_a_directory_of_another_sweep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(
        json.dumps({"varied": {"control.mode": ["off", "t2po"]}, "fixed": {}, "seeds": 1})
    )
    assert (
        main(["sweep", str(tmp_path), "--control", "off,t2po", "--learner.groups_per_update", "4"])
        == 2
    )
    assert "has runs of another sweep" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    assert main(["sweep", str(tmp_path / "other"), "--control", "off,t2po"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_sweep_dry_run_names_the_runs_and_their_time_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--control", "off,t2po", "--seeds", "2", "--minutes", "10", "--slots", "2"]
    assert main(["sweep", str(tmp_path / "sweep"), *settings, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "control=t2po,seed=1" in printed
    assert "4 of 4 runs to make, 2 at once: 20:00 min at most" in printed
    assert not (tmp_path / "sweep").exists()
