"""Environments by name."""

from importlib.metadata import EntryPoint

import pytest

from envs import registry


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'alfwrld'.*alfworld"):
        registry.make_environment("alfwrld")


def test_settings_reach_the_environment():
    assert registry.make_environment("alfworld", scene_size="real").max_turns == 50


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="colour"):
        registry.make_environment("alfworld", colour="red")


def test_third_parties_add_environments_by_entry_point(monkeypatch):
    point = EntryPoint("mygame", "builtins:dict", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda **wanted: [point] if wanted.get("name", "mygame") == "mygame" else [],
    )
    assert registry.make_environment("mygame", level=3) == {"level": 3}
    assert "mygame" in registry.environment_names()
