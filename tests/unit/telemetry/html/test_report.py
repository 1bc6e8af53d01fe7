"""The page of a report, of runs and episodes that the test makes up."""

from __future__ import annotations

from telemetry.html.report import RunData, differing_settings


def test_settings_that_say_where_are_no_differences() -> None:
    runs = [
        RunData("a", [], {"run.dir": "a", "run.seed": 0, "x.y": 1}),
        RunData("b", [], {"run.dir": "b", "run.seed": 1, "x.y": 1}),
    ]
    assert differing_settings(runs) == [("run.seed", [0, 1])]
