"""A run goes on with its own settings, and with those of other ones that leave it one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config import ConfigError
from config.resolve import resolve, to_toml
from learner.checkpoint_damage import (
    CONTENTS,
    STATE,
    archive_damaged,
    newest_undamaged,
    write_contents,
)
from protocol.messages import SCHEMA_VERSION
from supervisor.cli.main import main
from supervisor.resume import check_model_of, resolve_resumed, set_damaged_checkpoints_aside
from tests.fixtures.example_environment import guide_code
from tests.fixtures.runs import running_small
from tests.fixtures.servers import silent_server


def begun(directory: Path, **overrides: str) -> Path:
    """The directory of a run with these settings, as far as `--resume` looks into it."""
    directory.mkdir(exist_ok=True)
    config = resolve(
        overrides={name.replace("__", "."): value for name, value in overrides.items()}
    )
    (directory / "config.toml").write_text(to_toml(config))
    (directory / "job.json").write_text(json.dumps({"schema": SCHEMA_VERSION}))
    return directory


def finish_checkpoint(directory: Path) -> None:
    """Add what a checkpoint says of itself."""
    (directory / STATE).mkdir(parents=True, exist_ok=True)
    write_contents(directory)
    (directory / STATE / "state.json").write_text("{}")


@pytest.mark.parametrize(
    ("recorded", "setting", "value"),
    [
        ({}, "model", "smollm2"),
        ({}, "model.tiny.hidden_size", "256"),
        ({}, "model.tiny.tokens", "words"),
        ({}, "env", "webshop"),
        ({}, "env.settings.scene_size", "real"),
        ({"env": "search"}, "env.settings.questions", "mine.jsonl"),
        ({}, "run.seed", "1"),
        ({}, "sampling.temperature", "0.7"),
        ({}, "learner.group_size", "4"),
        ({}, "learner.lora_rank", "8"),
        ({"learner.lora_rank": "8"}, "learner.lora_rank", "0"),
        ({"learner.lora_rank": "8"}, "learner.lora_alpha", "16"),
        ({}, "learner.kl_coef", "0.1"),
        ({}, "model.system_prompt", "Be brief."),
    ],
)
def test_what_would_make_two_runs_of_one_is_refused_by_name_and_changes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recorded: dict[str, str],
    setting: str,
    value: str,
) -> None:
    run = begun(tmp_path / "run", **recorded)
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert main(["--resume", str(run), f"--{setting}", value]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    full = {"model": "model.name", "env": "env.name"}.get(setting, setting)
    assert (
        said.startswith(f"error: {full}: the run in {run} has ")
        and f"--model {run / 'policy'}" in said
    )
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_arguments_of_the_template_stay_as_they_are(tmp_path: Path) -> None:
    """A new one is refused, too; the same one again changes nothing."""
    settings = {"model": str(tmp_path), "model.template_arguments.thinking": "true"}
    run = begun(tmp_path / "run", **settings)
    assert resolve_resumed(run, settings)[1] == ""
    for name in ("thinking", "effort"):
        full = f"model.template_arguments.{name}"
        with pytest.raises(ConfigError, match=f"^{full}: .* which is what its prompts are made"):
            resolve_resumed(run, {full: "low"})


def test_what_is_changed_is_said_in_a_line(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    resolution, changes = resolve_resumed(
        run, {"learner.learning_rate": "1e-5", "model": "tiny", "engine.extra_args": "--a,--b"}
    )
    assert changes == "engine.extra_args (empty) -> --a,--b, learner.learning_rate 8e-05 -> 1e-05"
    assert resolution.config.learner.learning_rate == 1e-5
    assert resolve_resumed(run, {})[1] == ""


def test_settings_that_mean_nothing_to_a_run_may_change(tmp_path: Path) -> None:
    """Such as where a server is."""
    run = begun(tmp_path / "run", env="search")
    _, changes = resolve_resumed(run, {"env.settings.url": "http://b:1/retrieve"})
    assert changes.count("->") == 1


def test_data_that_was_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    there = tmp_path / "there"
    elsewhere = tmp_path / "elsewhere"
    for directory in (there, elsewhere):
        directory.mkdir()
    run = begun(tmp_path / "run", env__settings__data=str(there))
    with pytest.raises(ConfigError, match=r"env\.settings\.data: "):
        resolve_resumed(run, {"env.settings.data": str(elsewhere)})
    resolution, _ = resolve_resumed(run, {"env.settings.data": f"{there}/../there"})
    assert resolution.config.env.settings["data"]
    there.rmdir()
    resolution, _ = resolve_resumed(run, {"env.settings.data": str(elsewhere)})
    assert resolution.config.env.settings["data"] == str(elsewhere)


def test_resume_of_a_moved_environment_asks_for_its_file_and_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No version is blamed; another environment that is here takes the place of none."""
    file = tmp_path / "game.py"
    moved = tmp_path / "moved.py"
    file.write_text(guide_code())
    run = begun(tmp_path / "run", env=str(file), warm_start__episodes="0")
    file.rename(moved)
    for options in ([], ["--env", "webshop"]):
        assert main(["--resume", str(run), *options]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"error: env.name: there is no file {file} on ")
        assert "--env ./FILE.py:NAME" in said
    resolution, _ = resolve_resumed(run, {"env": str(moved)})
    assert resolution.config.env.name == str(moved)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name")
    with pytest.raises(ConfigError, match=r"^env\.name: .*broken\.py cannot be loaded"):
        resolve_resumed(run, {"env": str(broken)})


def test_resume_with_another_environment_of_ones_own_is_refused(tmp_path: Path) -> None:
    """One that is where it was has not moved."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(guide_code())
    run = begun(tmp_path / "run", env=f"{tmp_path}/one.py", warm_start__episodes="0")
    with pytest.raises(ConfigError, match=r"^env\.name: the run in "):
        resolve_resumed(run, {"env": f"{tmp_path}/two.py"})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("job.json", json.dumps({"schema": SCHEMA_VERSION - 1})),
        ("config.toml", "[learner]\nsettings_of_tomorrow = 1\n"),
    ],
)
def test_a_run_of_another_version_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str
) -> None:
    run = begun(tmp_path / "run")
    (run / file).write_text(text)
    assert main(["--resume", str(run)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: --resume: another version of this project wrote ")


def test_another_directory_than_that_of_the_run_is_refused(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert resolve_resumed(run, {"run_dir": str(run)})[1] == ""
    with pytest.raises(ConfigError, match=r"run\.dir: "):
        resolve_resumed(run, {"run_dir": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tokenizer.json", "{}", "another vocabulary"),
        ("config.json", '{"hidden_size": 2}', "hidden_size 2"),
    ],
)
def test_a_model_that_is_not_the_one_of_the_weights_is_refused(
    tmp_path: Path, small_policy: Path, file: str, text: str, said: str
) -> None:
    checkpoint = tmp_path / "checkpoints" / "000020"
    checkpoint.mkdir(parents=True)
    (tmp_path / "checkpoints" / "000030-collapsed").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json"):
        content = (small_policy / name).read_bytes()
        (checkpoint / name).write_bytes(content)
        (other / name).write_bytes(content)
    finish_checkpoint(checkpoint)
    check_model_of(tmp_path, small_policy)
    if file == "config.json":
        text = json.dumps(json.loads((small_policy / file).read_text()) | json.loads(text))
    (other / file).write_text(text)
    with pytest.raises(ConfigError, match=rf"model\.name: .*{said}"):
        check_model_of(tmp_path, other)


def spoil(file: Path, how: str) -> None:
    """Leave of a file what a loss of power, a killed copy or a person does."""
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2 if how == "cut" else 0])


@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        f"{STATE}/tensors/__0_0.distcp",
        f"{STATE}/state.json",
        CONTENTS,
    ],
)
def test_a_resume_leaves_a_checkpoint_aside_of_which_a_file_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    checkpoints = []
    for number in ("000020", "000040"):
        directory = tmp_path / "checkpoints" / number
        (directory / STATE / "tensors").mkdir(parents=True)
        for file in ("model.safetensors", "tokenizer.json", f"{STATE}/tensors/__0_0.distcp"):
            (directory / file).write_text("some bytes")
        finish_checkpoint(directory)
        checkpoints.append(directory)
    older, newer = checkpoints
    assert archive_damaged(tmp_path) == {} and newest_undamaged(tmp_path) == newer
    spoil(newer / name, how)
    assert newest_undamaged(tmp_path) == older
    set_damaged_checkpoints_aside(tmp_path)
    assert f"000040 of {tmp_path} is left aside: " in caplog.text and Path(name).name in caplog.text
    assert sorted(path.name for path in older.parent.iterdir()) == ["000020", "000040-damaged"]
    spoil(older / name, how)
    with pytest.raises(
        ConfigError, match=r"--resume: no checkpoint of the run is whole: in .*000020"
    ):
        set_damaged_checkpoints_aside(tmp_path)
    assert older.is_dir()


@pytest.mark.slow
async def test_settings_that_a_run_could_not_begin_with_are_not_kept(
    tmp_path: Path, small_policy: Path
) -> None:
    async with running_small(tmp_path / "run", small_policy, run__max_updates="1") as run:
        assert await run.ended() == 0, run.output
    before = (run.directory / "config.toml").read_text()
    with silent_server() as url:
        nobody = {"engine__urls": url, "engine__start_seconds": "1"}
        async with running_small(
            tmp_path / "run", small_policy, resume=str(run.directory), **nobody
        ) as run:
            assert await run.ended() == 1 and "settings changed: " in run.output
    assert (run.directory / "config.toml").read_text() == before
    async with running_small(
        tmp_path / "run", small_policy, resume=str(run.directory), run__max_updates="2"
    ) as run:
        assert await run.ended() == 0, run.output
        assert "run.max_updates 1 -> 2" in run.output and run.summary()["updates"] == 2
    assert "max_updates = 2" in (run.directory / "config.toml").read_text()
