"""A run's directory and files: whose they are, who may read them, who removes them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import supervisor.job
from config import ConfigError
from config.options import values_of
from config.resolve import resolve
from controller.transport import build_welcome
from envs.play import start_episode
from envs.registry import make_environments
from protocol.security import make_keys
from supervisor.job import check_job, clean_up, job_file, make_weights_dir, prepare_job
from tests.fixtures.runs import job_in


@pytest.mark.slow
def test_weights_of_a_killed_supervisor_are_removed_those_of_a_living_one_kept(
    tmp_path: Path,
):
    """Weights of a killed supervisor are removed and those of a living one are not."""
    code = (
        "from pathlib import Path; from supervisor.job import make_weights_dir; "
        f"print(make_weights_dir(Path({str(tmp_path)!r})))"
    )
    ended = Path(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    assert ended.is_dir()
    first = Path(make_weights_dir(tmp_path))
    second = Path(make_weights_dir(tmp_path))
    assert not ended.exists() and first.is_dir() and second.is_dir() and first != second


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path: Path, small_policy: Path):
    config = resolve(
        overrides={
            "model": str(small_policy),
            "run.dir": str(tmp_path / "run"),
            "run.weights_dir": str(tmp_path / "weights"),
        }
    )
    job = prepare_job(config, resume=False, model=small_policy)
    log = tmp_path / "run" / "job.json"
    before = log.read_bytes()
    with pytest.raises(ConfigError, match=r"run\.dir: the run in .* is still under way"):
        prepare_job(config, resume=True, model=small_policy)
    assert log.read_bytes() == before
    clean_up(job)
    resumed = prepare_job(config, resume=True, model=small_policy)
    assert resumed.run_id == job.run_id  # engines know it again
    clean_up(resumed)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_copy_of_a_run_is_another_one_to_its_engines(tmp_path: Path, small_policy: Path):
    settings = {"model": str(small_policy), "run.weights_dir": str(tmp_path / "weights")}
    job = prepare_job(
        resolve(overrides=settings | {"run.dir": str(tmp_path / "run")}),
        resume=False,
        model=small_policy,
    )
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copied = prepare_job(
        resolve(overrides=settings | {"run.dir": str(tmp_path / "copy")}),
        resume=True,
        model=small_policy,
    )
    assert copied.run_id != job.run_id
    for begun in (job, copied):
        clean_up(begun)


def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(
    tmp_path: Path, small_policy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor.job, "default_run_dir", lambda: tmp_path / "20260101-120000")
    config = resolve(overrides={"model": str(small_policy)})
    jobs = [prepare_job(config, resume=False, model=small_policy) for _ in range(3)]
    assert [Path(job.run_dir).name for job in jobs] == [
        "20260101-120000",
        "20260101-120000.2",
        "20260101-120000.3",
    ]
    for job in jobs:
        clean_up(job)


def test_a_place_where_nothing_can_be_written_is_refused(small_policy: Path):
    with pytest.raises(ConfigError, match=r"run\.dir: /proc/run cannot be written to"):
        prepare_job(
            resolve(overrides={"model": str(small_policy), "run.dir": "/proc/run"}),
            resume=False,
            model=small_policy,
        )


def test_a_place_where_no_weights_can_be_put_is_refused_and_leaves_no_run(
    tmp_path: Path, small_policy: Path
):
    overrides = {
        "model": str(small_policy),
        "run.dir": str(tmp_path / "run"),
        "run.weights_dir": "/proc/weights",
    }
    with pytest.raises(ConfigError, match=r"run\.weights_dir: /proc/weights cannot be made"):
        prepare_job(resolve(overrides=overrides), resume=False, model=small_policy)
    assert not (tmp_path / "run").exists()


def test_what_is_not_ours_is_left_alone(tmp_path: Path):
    (tmp_path / "foray-notes").mkdir()
    make_weights_dir(tmp_path)
    assert (tmp_path / "foray-notes").is_dir()


def test_listening_to_other_machines_without_keys_is_refused_naming_the_command(tmp_path: Path):
    settings = {"controller.host": "0.0.0.0", "run.dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"controller\.host.*run\.py keys DIR.*security\.keys"):
        prepare_job(resolve(overrides=settings), resume=False, model=None)
    assert not (tmp_path / "run").exists()


def test_the_keys_of_a_machine_that_joins_are_not_those_of_a_run(tmp_path: Path):
    make_keys(tmp_path / "keys", "host")
    with pytest.raises(ConfigError, match=r"security\.keys: .*the directory above it"):
        prepare_job(
            resolve(
                overrides={
                    "security.keys": str(tmp_path / "keys" / "host"),
                    "run.dir": str(tmp_path / "run"),
                }
            ),
            False,
            None,
        )


def test_nobody_else_may_read_a_run(tmp_path: Path):
    job = prepare_job(
        resolve(overrides={"run.dir": str(tmp_path / "runs" / "run")}), resume=False, model=None
    )
    shutil.rmtree(job.weights_dir)
    assert (
        Path(job.run_dir).stat().st_mode & 0o777 == 0o700
        and job_file(job).stat().st_mode & 0o777 == 0o600
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"eval.sets.new.tasks": "25", "eval.sets.new.first_task": "1000"},
            r"eval\.sets\.new\.tasks: 25 tasks from number 1000 on, and .* held_out has 1024",
        ),
        (
            {"eval.sets.new.settings.data": "/nowhere"},
            r"eval\.sets\.new\.settings: env\.settings\.data .*no directory /nowhere",
        ),
    ],
)
def test_evaluation_sets_without_their_tasks_are_refused(settings: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        check_job(resolve(overrides=settings))


def test_evaluation_sets_with_other_settings_are_told_to_actors(tmp_path: Path, small_policy: Path):
    sets = {
        "eval.sets.heat.settings.task_types": "pick_heat_then_place_in_recep",
        "eval.sets.plain.tasks": "1",
    }
    config = resolve(overrides={"model.name": str(small_policy), **sets})
    welcome = build_welcome(job_in(tmp_path / "job", config))
    assert welcome.settings_by_set == {"heat": config.environment_settings("heat")}
    environments = make_environments(
        welcome.environment, welcome.environment_settings, welcome.settings_by_set
    )
    assert environments.of_set("plain") is environments.training
    heated = start_episode(environments.of_set("heat"), "held_out", 0, 0)
    assert heated.task_type == "pick_heat_then_place_in_recep"


def test_a_secret_is_shown_as_set_and_no_more():
    assert values_of(resolve(overrides={"dashboard.token": "sesame"}))["dashboard.token"] == "(set)"
    assert values_of(resolve())["dashboard.token"] == ""
