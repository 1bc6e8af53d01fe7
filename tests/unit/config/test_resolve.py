"""Settings from defaults, a file and the command line, and back to TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
from config import Config, MisLoss, TisLoss
from config.options import (
    all_settings,
    description,
    values_of,
)
from config.resolve import find_changes, from_dict, read_record, resolve, to_toml
from envs.registry import BUILT_IN_SETTINGS
from tests.fixtures.settings import expect_refusal, write_settings


def test_defaults_survive_toml(tmp_path: Path) -> None:
    assert resolve(write_settings(tmp_path, to_toml(resolve()))) == resolve()


@given(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3),
)
def test_any_value_survives_toml(text: str, number: float, texts: list[str]) -> None:
    run = config.RunSection(dir=text, max_minutes=number)
    env = config.EnvSection(settings={"task_types": texts})
    settings = Config(run=run, env=env)
    assert from_dict(tomllib.loads(to_toml(settings))) == settings


def test_read_record_needs_no_environment_and_finds_what_was_changed(tmp_path: Path) -> None:
    """That of the run is code which is here no more; its settings all count as changed."""
    record = write_settings(tmp_path, to_toml(resolve()))
    assert read_record(record) == resolve()
    gone = {"name": f"{tmp_path}/gone.py:Game", "settings": {"level": 3}}
    record.write_text(f'[env]\nname = "{gone["name"]}"\nsettings.level = 3\n[run]\nseed = 7\n')
    found = read_record(record)
    assert found == Config(env=config.EnvSection(**gone), run=config.RunSection(seed=7))
    assert find_changes(found).keys() == {"env.name", "env.settings.level", "run.seed"}


def test_toml_describes_every_setting() -> None:
    lines = to_toml(Config()).splitlines()
    for name in values_of(Config()):
        assert f"# {description(all_settings()[name])}" in lines


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = write_settings(tmp_path, "[run]\nseed = 1\nmax_updates = 5\n")
    settings = resolve(file, {"seed": "2"})
    assert (settings.run.seed, settings.run.max_updates) == (2, 5)


@pytest.mark.parametrize(
    "name", ["max_staleness", "max-staleness", "learner.max_staleness", "learner.max-staleness"]
)
def test_a_setting_can_be_written_with_dashes_and_short(name: str) -> None:
    assert resolve(overrides={name: "3"}).learner.max_staleness == 3


def test_a_whole_number_will_do_for_a_fraction(tmp_path: Path) -> None:
    assert resolve(write_settings(tmp_path, "[run]\nmax_minutes = 5\n")).run.max_minutes == 5.0


def test_a_list_is_written_with_commas() -> None:
    assert resolve(overrides={"env.settings.task_types": "pick, heat,,cool"}).env.settings[
        "task_types"
    ] == [
        "pick",
        "heat",
        "cool",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("Yes", True), ("1", True), ("false", False), ("NO", False), ("0", False)],
)
def test_a_switch_is_written_in_words_or_digits(text: str, value: bool) -> None:
    assert resolve(overrides={"eval.control": text}).eval.control is value


@pytest.mark.parametrize(
    "toml",
    [
        '[learner]\nloss = "mis"\n',
        '[learner.loss]\ntype = "mis"\n',
        '[learner.loss]\ntype = "mis"\nmis_low = 0.5\n',
    ],
)
def test_a_tagged_section_is_chosen_by_its_type(tmp_path: Path, toml: str) -> None:
    assert resolve(write_settings(tmp_path, toml)).learner.loss == MisLoss()


def test_a_type_on_the_command_line_replaces_a_files_and_its_settings(tmp_path: Path) -> None:
    file = write_settings(
        tmp_path, '[learner.loss]\ntype = "decoupled"\nclip_low = 0.1\ntis_cap = 3.0\n'
    )
    loss = resolve(file, {"learner.loss": "tis"}).learner.loss
    assert loss == TisLoss(tis_cap=3.0)
    assert "learner.loss.clip_low" in expect_refusal(
        file, learner__loss="tis", learner__loss__clip_low="1"
    )


def test_the_settings_of_an_environment_end_with_it(tmp_path: Path) -> None:
    file = write_settings(tmp_path, '[env]\nname = "search"\n[env.settings]\ntopk = 5\n')
    assert resolve(file).env.settings["topk"] == 5
    assert "topk" not in resolve(file, {"env": "webshop"}).env.settings


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of somebody's environment."""

    level: Annotated[int, msgspec.Meta(description="Level to begin at", ge=1)] = 1


def test_an_environment_of_ones_own_validates_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN_SETTINGS, "mygame", Level)
    assert resolve(None, {"env": "mygame"}).env.settings == {"level": 1}
    assert resolve(None, {"env": "mygame", "env.settings.level": "3"}).env.settings == {"level": 3}
    message = expect_refusal(env="mygame", env__settings__level="0")
    assert message.startswith("env.settings.level: expected ") and "Level to begin at" in message


def test_resolve_run_on_gpus_computes_in_bfloat16_unless_it_is_told_otherwise() -> None:
    """Weights and optimizer stay float32; the tiny policy's numbers are of float32 throughout."""
    gpus = {"model": "Qwen/Qwen3-0.6B", "cluster.gpus": "1"}
    config = resolve(None, gpus)
    assert (config.learner.precision, config.engine.dtype) == ("bfloat16", "bfloat16")
    assert resolve(None, {**gpus, "learner.precision": "float32"}).learner.precision == "float32"
    assert resolve(None, {**gpus, "model": "tiny"}).learner.precision == "float32"
    assert resolve(None, {"recipe": "8x80gb"}).engine.dtype == "bfloat16"
