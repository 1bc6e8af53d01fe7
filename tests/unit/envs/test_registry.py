"""Environments by name."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from config import ConfigError
from config.resolve import resolve, to_toml
from envs import registry
from tests.fixtures.example_environment import guide_code
from tests.fixtures.tool_environment import tool_code


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'alfwrld'.*alfworld"):
        registry.make_environment("alfwrld")


def test_find_factory_of_an_unknown_name_asks_for_the_nearest() -> None:
    """A name that is none is answered with the nearest, and how code of one's own is named."""
    with pytest.raises(registry.EnvironmentNotFound, match=r"FILE\.py.*did you mean webshop\?"):
        registry.find_factory("webshp")


@pytest.fixture
def game_file(tmp_path: Path) -> Path:
    """The environment of the guide, in a file that nobody has installed, beside a module of it."""
    code = guide_code()
    file = tmp_path / "my game.py"
    file.write_text(f"from numbers_beside import LARGEST\n{code}\nBROKEN = 3\n")
    (tmp_path / "numbers_beside.py").write_text("LARGEST = 15\n")
    return file


@pytest.mark.parametrize("attribute", ["", ":Bisection"])
def test_environment_of_a_file_is_made_wherever_one_works(
    game_file: Path, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`./FILE.py` and `./FILE.py:NAME` name an environment, from any working directory."""
    monkeypatch.chdir(game_file.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = resolve(None, {"env": f"./{game_file.name}{attribute}", "env.history": "2"})
    assert config.env.name == f"{game_file}{attribute}"
    monkeypatch.chdir("/")
    environment = registry.make_environment(config.env.name, **config.environment_settings())
    assert (environment.name, environment.history) == ("bisection", 2)
    assert registry.source_of_environment(config.env.name) == game_file.read_bytes()
    assert resolve(written(game_file.parent, to_toml(config))) == config


def written(directory: Path, toml: str) -> Path:
    """A file of settings."""
    (directory / "settings.toml").write_text(toml)
    return directory / "settings.toml"


def test_environment_of_a_file_in_settings_is_found_from_the_working_directory(
    game_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of settings names an environment's file as the command line does."""
    monkeypatch.chdir(game_file.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = written(game_file.parent, f'[env]\nname = "{game_file.name}"\n')
    assert resolve(file).env.name == str(game_file)


def test_environment_of_a_file_declares_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The struct `Settings` of a class in a file is checked as that of an installed one."""
    file = tmp_path / "levels.py"
    file.write_text(
        "import msgspec\n"
        "class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):\n"
        "    level: int = 1\n"
        "class Levels:\n"
        "    def __init__(self, level=1): self.level = level\n"
        "    size = start = view = prompt = parse = __init__\n"
        "Levels.Settings = Settings\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = resolve(None, {"env": str(file), "env.settings.level": "3"})
    assert registry.make_environment(config.env.name, **config.environment_settings()).level == 3
    with pytest.raises(ConfigError, match=r"env\.settings\.level: 'x' is not a whole number"):
        resolve(None, {"env": str(file), "env.settings.level": "x"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DIR/none.py", r"there is no file DIR/none\.py on \S+; put it there"),
        ("DIR/my game.py:Nothing", r"my game\.py has no class 'Nothing' with the methods size, "),
        ("DIR/my game.py:BROKEN", r"my game\.py has no class 'BROKEN' "),
        ("DIR/numbers_beside.py", r"has no class with the methods size, .*task, episode\)$"),
        ("DIR/two.py", r"two\.py has several environments, A, B; say which: DIR/two\.py:NAME"),
        ("DIR/sise.py", r"; the class A has no size \(is sise meant to be it\?\)$"),
        ("DIR/sise.py:A", r"has no class 'A' .*; the class A has no size \(is sise"),
        ("DIR/broken.py", r"broken\.py cannot be loaded: KeyError: 'x' \(.*broken\.py:2 in"),
        ("no_such_module:Game", r"no module no_such_module .*\./no_such_module\.py:Game"),
        ("json.nothing:Game", r"no module json\.nothing "),
        ("json:Game", r"json has no class 'Game' "),
        ("json:dumps", r"json has no class 'dumps' "),
        ("pathlib:Path", r"pathlib has no class 'Path' "),
    ],
)
def test_environment_of_code_that_cannot_be_loaded_says_why(
    name: str, message: str, game_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason that keeps code of one's own from being found is said before anything starts."""
    directory = game_file.parent
    (directory / "broken.py").write_text("\n{}['x']\n")
    one = "class A:\n    size = start = tools = print\n"
    (directory / "two.py").write_text(f"{one}{one.replace('A', 'B')}")
    (directory / "sise.py").write_text(one.replace("size", "sise"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError, match=message.replace("DIR", str(directory))):
        resolve(None, {"env": name.replace("DIR", str(directory))})


@pytest.mark.parametrize("name", ["subprocess:getoutput", "FILE:getoutput", "subprocess:Popen"])
def test_name_of_what_is_no_environment_calls_nothing(name: str, tmp_path: Path) -> None:
    """A controller whose machine is not its owner's any more cannot have actors run commands."""
    name = name.replace("FILE", subprocess.__file__)
    touched = tmp_path / "touched"
    command = f"touch {touched}"
    for keyword in ("cmd", "args"):
        with pytest.raises(registry.EnvironmentNotFound, match="has no class"):
            registry.make_environment(name, **{keyword: command, "shell": True})
    assert not touched.exists()


def test_settings_reach_the_environment():
    assert registry.make_environment("alfworld", scene_size="real").max_turns == 50


def test_make_environment_limits_turns_of_a_conversation_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "prices.py"
    file.write_text(tool_code())
    assert registry.make_environment(str(file)).max_turns == 5
    assert registry.make_environment(str(file), max_turns=60).max_turns == 60
    with pytest.raises(ValueError, match=r"^env\.history: .* talks in messages"):
        registry.make_environment(str(file), history=3)


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
