"""Recipes: each runs, each number has its source, and they compose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config import ConfigError
from config.options import flatten_config
from config.recipes import DIRECTORY, read_recipes, recipe_names
from config.resolve import resolve, to_toml
from envs.registry import make_environment
from supervisor.resume import resumed_config


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_alone_makes_a_run(name: str) -> None:
    config = resolve(overrides={"recipe": name})
    environment = make_environment(config.env.name, **config.environment_settings())
    assert environment.name == config.env.name


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_says_where_its_numbers_are_from(name: str) -> None:
    text = (DIRECTORY / f"{name}.toml").read_text()
    comments = " ".join(re.findall("# .*", text))
    assert text.startswith("# ") and re.search("paper|code|measurements|docs/guides", comments)


@pytest.mark.parametrize("environment", ["alfworld", "webshop", "search"])
@pytest.mark.parametrize("control", ["t2po-paper", "t2po-code"])
@pytest.mark.parametrize("machine", ["tiny", "smollm2", "1x80gb", "8x80gb", "2-nodes"])
def test_recipes_of_environment_control_and_machine_compose(
    environment: str, control: str, machine: str
) -> None:
    config = resolve(overrides={"recipe": f"{environment},{control},{machine}"})
    values = flatten_config(config)
    assert config.env.name == environment and config.control.mode == "t2po"
    assert values["model.name"] == read_recipes(machine)["model"]["name"]


def test_recipe_gives_way_to_a_later_one_a_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[env]\nmax_turns = 7\n")
    overrides = {"recipe": "alfworld,smollm2"}
    assert resolve(None, overrides).env.max_turns == 50
    assert resolve(None, overrides).learner.groups_per_update == 4
    assert resolve(file, overrides).env.max_turns == 7
    assert resolve(file, {**overrides, "env.max_turns": "9"}).env.max_turns == 9


def test_recipe_that_does_not_exist_is_answered_with_all() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'alfwrld'; there are: .*alfworld"):
        resolve(overrides={"recipe": "alfwrld"})


def test_recipe_given_to_a_run_that_is_resumed_changes_nothing(tmp_path: Path) -> None:
    """The same command begins a run and goes on with it, as a cluster's script does."""
    recorded = resolve(overrides={"recipe": "webshop,tiny", "run.dir": str(tmp_path)})
    (tmp_path / "config.toml").write_text(to_toml(recorded))
    assert resumed_config(tmp_path, {"recipe": "alfworld"}) == (recorded, "")
