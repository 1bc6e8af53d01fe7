"""The report says where a run comes from, and draws what a run alone has."""

from __future__ import annotations

import msgspec

from config import Config
from config.options import values_of
from telemetry.html.report import (
    RunData,
    changed_settings,
    describe_run,
    differing_settings,
    draw_success,
    draw_time,
    draw_types,
    render_report,
)
from telemetry.sinks.starts_file import describe_start
from tests.fixtures.records import evaluated

RECORDS = [
    {"kind": "evaluation", "update": 0, "wall_seconds": 1.0, **evaluated(0.25, 64)}
    | {"success/pick": 0.5, "success/look": 0.0},
    {"kind": "update", "update": 1, "wall_seconds": 60.0, "success": 0.5, "seconds_wait": 3.0}
    | {"seconds_train": 2.0, "dropped_env_error": 2, "training_tokens": 100},
    {"kind": "evaluation", "update": 1, "wall_seconds": 61.0, **evaluated(0.75, 64)}
    | {"success/pick": 1.0, "success/look": 0.5},
]


def run_data(**changes: object) -> RunData:
    """A run with an update between two evaluations, started twice."""
    first = describe_start(["--seed", "3"], ["tiny"], "")
    resumed = (["--resume", "a"], ["tiny", "t2po-code"], "run.max_updates 1 -> 2")
    second = describe_start(*resumed, ["H200", "H200"])
    settings = values_of(Config()) | {"run.seed": 3, "run.dir": "somewhere"}
    fields = {"name": "a", "records": RECORDS, "settings": settings, "starts": [first, second]}
    return RunData(**fields | changes)


def test_report_says_where_a_run_comes_from() -> None:
    """Its commands, recipes, machine, versions, and what a resume changed are on the page."""
    rows = dict(describe_run(run_data()))
    assert rows["command"] == ["python run.py --seed 3", "python run.py --resume a"]
    assert rows["recipes"] == ["tiny, t2po-code"] and rows["machine"][-1] == "2 x H200"
    assert "msgspec" in rows["versions"][0]
    assert rows["resumed with"][0].endswith("run.max_updates 1 -> 2")
    page = render_report([run_data()])
    assert "<code>python run.py --seed 3</code>" in page


def test_report_of_one_run_lists_its_settings_with_the_defaults() -> None:
    """Settings that are not at their defaults stand beside these; all others are one click away."""
    run = run_data()
    assert changed_settings(run) == [("run.seed", 3, 0)]
    page = render_report([run])
    assert "<td>run.seed</td><td>3</td><td>0</td>" in page
    assert f"all {len(run.settings)} settings" in page and "run.max_updates = 100" in page


def test_report_of_a_run_that_nobody_recorded_says_so() -> None:
    """A run of an earlier version has no starts."""
    assert "Nobody has recorded how this run was started" in render_report([run_data(starts=[])])


def test_held_out_success_has_intervals() -> None:
    """Each evaluation has a bar from the low end of its interval to the high end."""
    assert draw_success([run_data()]).count('class="interval s0"') == 2 * 3, "over three x-axes"


def test_success_by_type_is_drawn_of_one_run_with_several_types() -> None:
    """Types of tasks have a chart of their own, with a legend; of several runs they have none."""
    (chart,) = draw_types([run_data()])
    assert "look</span>" in chart and "pick</span>" in chart
    assert draw_types([run_data(), run_data(name="b")]) == []
    assert draw_types([run_data(records=RECORDS[1:2])]) == []


def test_time_of_an_update_is_drawn_part_by_part() -> None:
    """Waiting, training and publishing share a chart, so that they can be compared."""
    (chart,) = draw_time([run_data()])
    assert "wait</span>" in chart and "train</span>" in chart
    assert draw_time([run_data(records=[])]) == []


def test_dropped_episodes_are_drawn_where_there_are_any() -> None:
    """Failures have a section of their own, which a run without any does not have."""
    assert 'id="drops"' in render_report([run_data()])
    assert 'id="drops"' not in render_report([run_data(records=RECORDS[:1])])


def test_start_survives_its_file() -> None:
    """What a start says is the same after it was written."""
    start = describe_start([], [], "")
    assert msgspec.json.decode(msgspec.json.encode(start), type=type(start)) == start


def test_settings_that_say_where_are_no_differences() -> None:
    runs = [
        RunData("a", [], {"run.dir": "a", "run.seed": 0, "x.y": 1}),
        RunData("b", [], {"run.dir": "b", "run.seed": 1, "x.y": 1}),
    ]
    assert differing_settings(runs) == [("run.seed", [0, 1])]
