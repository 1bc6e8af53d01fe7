"""Plan of a sweep: which settings are varied, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

import supervisor.cli.sweep
from config import ConfigError
from supervisor.cli.main import main
from supervisor.cli.sweep import build_plan, sweep
from supervisor.job import lock_directory


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


@pytest.mark.parametrize(
    "setting", ["env.settings.task_types", "eval.sets.unseen.settings.task_types"]
)
def test_a_list_is_one_value(setting: str) -> None:
    planned = build_plan({setting: "pick_and_place_simple,look_at_obj_in_light"}, seeds=1)
    assert planned.varied == {} and len(planned.cells()) == 1


def test_a_system_prompt_with_commas_is_one_value() -> None:
    """Arguments of a template are varied as other settings are."""
    argument = "model.template_arguments.thinking"
    settings = {"model": "Qwen/Qwen3-4B", "model.system_prompt": "Be brief, please."}
    planned = build_plan(settings | {argument: "true,false"}, seeds=1)
    models = [planned.config(cell).model for cell in planned.cells()]
    assert [model.template_arguments["thinking"] for model in models] == [True, False]
    assert {model.system_prompt for model in models} == {"Be brief, please."}


def test_the_numbers_of_an_evaluation_set_are_varied() -> None:
    planned = build_plan({"eval.sets.unseen.tasks": "8,16"}, seeds=1)
    assert [planned.config(cell).eval.sets["unseen"].tasks for cell in planned.cells()] == [8, 16]


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
        ({"eval.sets.unseen.split": "unsen"}, "unsen"),
        ({"env": "chess"}, "unknown environment"),
        ({"env": "chess,alfworld"}, "unknown environment"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_plan(overrides, seeds=1)


@pytest.mark.slow
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
