"""Defaults: those of an environment, of a model and of a preset hold until a setting is set."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import msgspec
import pytest

from config import Config
from config.defaults import OWN_MODEL_DEFAULTS, PRESETS, RATES, TINY_DEFAULTS, with_preset
from config.options import (
    values_of,
)
from config.resolve import resolve, to_toml
from envs.settings import AlfWorldSettings
from tests.fixtures.settings import write_settings


def test_defaults_are_consistent() -> None:
    config = resolve()
    assert config == msgspec.structs.replace(Config(), env=config.env)
    assert config.env.settings == msgspec.to_builtins(AlfWorldSettings())


@pytest.mark.parametrize(
    ("environment", "full"),
    [(name, full) for name, others in TINY_DEFAULTS.items() for full in others],
)
def test_an_environments_defaults_hold_until_the_setting_is_set(
    environment: str, full: str, tmp_path: Path
) -> None:
    def value(config: Config) -> object:
        return value_of(config, full)

    other = TINY_DEFAULTS[environment][full]
    set_here = {"env": environment, full: str(value(Config()))}
    assert (
        value(resolve(None, {"env": environment}))
        == value(resolve(write_settings(tmp_path, f'env.name = "{environment}"')))
        == other
    )
    assert value(resolve(None, set_here)) == value(Config()) != other


@pytest.mark.parametrize("environment", TINY_DEFAULTS)
def test_a_model_of_ones_own_plays_an_environment_as_others_know_it(
    environment: str, tmp_path: Path
) -> None:
    config = resolve(None, {"env": environment, "model": str(tmp_path)})
    assert config == resolve(
        write_settings(tmp_path, f'[env]\nname = "{environment}"\n[model]\nname = "{tmp_path}"')
    )
    values = {
        full: value
        for full, value in values_of(config).items()
        if not full.startswith("env.settings.") and value != value_of(Config(), full)
    }
    assert values == OWN_MODEL_DEFAULTS | {"env.name": environment, "model.name": str(tmp_path)}


def value_of(settings: Config, full: str) -> object:
    return attrgetter(full)(settings)


@pytest.mark.parametrize(
    ("preset", "full"), [(name, full) for name, others in PRESETS.items() for full in others]
)
def test_a_preset_holds_until_the_setting_is_set(preset: str, full: str) -> None:
    assert value_of(resolve(None, {"control.preset": preset}), full) == PRESETS[preset][full]
    other = str(value_of(Config(), full))
    assert value_of(
        resolve(None, {"control.preset": preset, full: other, **_allowing(full, preset)}), full
    ) == value_of(Config(), full)


@pytest.mark.parametrize("model", [False, True], ids=["tiny", "a model"])
@pytest.mark.parametrize("recorded", PRESETS)
@pytest.mark.parametrize("given", PRESETS)
def test_a_preset_given_to_a_recorded_run_is_that_of_a_new_one(
    tmp_path: Path, recorded: str, given: str, model: bool
) -> None:
    name = str(tmp_path) if model else "tiny"
    had, new = (
        resolve(overrides={"model.name": name, "control.preset": preset})
        for preset in (recorded, given)
    )
    (tmp_path / "config.toml").write_text(to_toml(had))
    assert (
        resolve(tmp_path / "config.toml", with_preset({"control.preset": given}, had)).control
        == new.control
    )


def _allowing(full: str, preset: str) -> dict[str, str]:
    """Return what else must be set for a setting of the preset to be set back."""
    return (
        {"control.t2po.score": "paper"}
        if (preset, full) == ("code", "control.t2po.turn_mean")
        else {}
    )


def test_a_model_that_thinks_longer_is_judged_by_more_of_its_thoughts(tmp_path: Path) -> None:
    control = resolve(None, {"model": str(tmp_path)}).control
    assert (control.t2po.window, control.t2po.min_thinking) == (7, 16)


@pytest.mark.parametrize(("threshold", "rate"), RATES.items())
def test_a_threshold_that_is_given_is_fixed(threshold: str, rate: str, tmp_path: Path) -> None:
    assert value_of(resolve(None, {threshold: "0.5"}), rate) == 0
    run = write_settings(tmp_path, f"{threshold} = 0.5\n{rate} = 0.25")
    assert value_of(resolve(run), rate) == 0.25
    assert value_of(resolve(run, {threshold: "0.7"}), rate) == 0
