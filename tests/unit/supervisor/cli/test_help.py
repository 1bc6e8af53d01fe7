"""The help of `run.py`: its text, and how it is asked for."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from config import ConfigError
from config.options import SHORT_NAMES, all_settings, flatten_config
from config.resolve import resolve
from supervisor.cli.commands import COMMANDS
from supervisor.cli.help import HEADLINES, choices_of, print_help
from supervisor.cli.main import main

SETTINGS = list(all_settings())


def overview(width: int, capsys: pytest.CaptureFixture[str]) -> str:
    print_help("", Console(width=width))
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 200])
def test_help_fits_a_screen_and_names_commands_and_sections(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    text = overview(width, capsys)
    assert len(text.splitlines()) <= 45
    assert max(map(len, text.splitlines())) <= width
    assert all(re.search(rf"^  .*\b{name}\b", text, re.MULTILINE) for name in COMMANDS)
    sections = {name.partition(".")[0] for name in SETTINGS}
    assert all(re.search(rf"\b{section}\b", text) for section in sections)


def test_help_headlines_are_of_the_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(HEADLINES) == set(SHORT_NAMES)
    text = overview(200, capsys)
    assert all(f"--{short.replace('_', '-')} " in text for short in SHORT_NAMES)


def test_help_overview_shows_what_a_run_without_options_has(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A recipe that such a run takes by itself is named, with what other runs have."""
    said = " ".join(overview(200, capsys).split())
    plain = flatten_config(resolve())
    assert "[14 by recipe tiny, else 0]" in said
    for short, full in SHORT_NAMES.items():
        row = said.partition(f"--{short.replace('_', '-')} ")[2].partition("]")[0]
        if plain[full] != "":
            assert row.rpartition("[")[2].split()[0] == str(plain[full]).removesuffix(".0"), full


def test_help_on_a_section_has_its_settings_and_no_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_help("control", Console(width=300))
    options = re.findall(r"^  --(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert options == [n.replace("_", "-") for n in SETTINGS if n.startswith("control.")]


def test_help_shows_the_choices_of_every_enumerated_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_help("all", Console(width=1000))
    text = " ".join(capsys.readouterr().out.split())
    enumerated = {name: choices_of(field) for name, field in all_settings().items()}
    enumerated = {name: choices for name, choices in enumerated.items() if choices}
    assert len(enumerated) >= 15
    for name, choices in enumerated.items():
        row = text.partition(f" --{name.replace('_', '-')} ")[2].partition("]")[0]
        assert f"one of {', '.join(choices)}" in row


def test_help_on_a_section_inside_another_says_which_types_have_a_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_help("learner.algorithm", Console(width=300))
    text = capsys.readouterr().out
    assert re.search(r"--learner.algorithm.gae-lambda .*\[for gae; default 0.95\]", text)
    assert "--learner.learning-rate" not in text


def test_help_on_nothing_known_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no section 'lerner'; there are: run, env, .* and all"):
        print_help("lerner", Console())


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["--help"], "python run.py [COMMAND]"),
        (["train", "--help"], "python run.py [COMMAND]"),
        (["--help", "run"], "Settings: run"),
        (["help", "sampling"], "Settings: sampling"),
        (["help", "play"], "usage: run.py play"),
        (["play", "--help"], "usage: run.py play"),
        (["--version"], "foray "),
    ],
)
def test_main_answers_every_way_of_asking_for_help(
    arguments: list[str], beginning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(beginning)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() & {n.partition(".")[0] for n in SETTINGS}))
def test_main_help_on_a_command_with_the_name_of_a_section_shows_both(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's own help first, as of any other command."""
    assert main(["--help", name]) == 0
    said = capsys.readouterr().out
    assert re.match(rf"usage: .*run\.py {name} ", said) and f"\n\nSettings: {name}\n" in said


def test_help_says_which_defaults_are_others_by_recipes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_help("all", Console(width=300))
    assert (
        "for RL to improve [default 0, tiny-alfworld 0.47, tiny-search 0.35, tiny-webshop 0.25]"
        in capsys.readouterr().out
    )


def test_help_says_what_recipes_have_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_help("learner", Console(width=300))
    assert "[default 8, serial 2, smollm2 4; recipes: alfworld 16," in capsys.readouterr().out


def test_help_gives_no_default_where_it_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_help("all", Console(width=300))
    said = capsys.readouterr().out
    assert "NODEFAULT" not in said and "[default ]" not in said and "[default []]" not in said
