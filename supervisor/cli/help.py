"""The help of the command line: an overview, one section of settings, or all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import msgspec
from rich.console import Console

from config import ConfigError
from config.options import (
    SHORT_NAMES,
    all_settings,
    default_of,
    description,
    environment_fields,
    flatten_config,
    kind_of,
    tagged_sections,
    this_command,
)
from config.recipes import is_own_recipe, recipe_names
from config.resolve import Resolution, all_recipes, resolve_new
from config.sets import EVALUATION_SETS, set_fields
from envs.registry import environment_names
from supervisor.cli.commands import COMMANDS

ALL = "all"

RUN_OPTIONS = {
    "--config FILE.toml": "read settings from a file",
    "--recipe NAME,NAME": f"add recipes/NAME.toml ({len(recipe_names())} of them), or a .toml file",
    "--dry-run": "check and print the settings, and start nothing",
    "--resume RUN": "go on with a run from its last checkpoint",
    "--serial": "run in one process with a small engine, for a debugger",
    "--version": "print the version",
}
"""Options of training that are no settings."""

HEADLINES = {
    "actors": ("N", "actor processes"),
    "engines": ("N", "engines to start here"),
    "env": ("NAME", "environment: webshop, search, ..., ./FILE.py"),
    "model": ("NAME", "policy: tiny, smollm2, a directory, OWNER/NAME"),
    "control": ("NAME", "control of exploration"),
    "algorithm": ("NAME", "advantage estimator"),
    "max_staleness": ("N", "versions a token may lag, plus order_window (1)"),
    "updates": ("N", "updates of the policy after which training ends"),
    "minutes": ("N", "minutes until training ends"),
    "tokens": ("N", "tokens after which training ends; 0: no limit"),
    "seed": ("N", "seed of everything random"),
    "run_dir": ("DIR", "directory that the run writes to"),
}
"""Short name -> what its value is, and what the setting does in a few words."""

MARGIN = 2
NAME_COLUMNS = 22
LONG_NAME_COLUMNS = 32


def print_help(topic: str, console: Console) -> None:
    """Print the help on a topic: "" for an overview, a section of settings, or "all".

    Raises ConfigError for another topic.
    """
    if not topic:
        _print_lines(_overview(console.width), console)
        return
    sections = _sections()
    if topic == ALL:
        lines = [line for name in sections for line in [*_section_lines(name, console.width), ""]]
        _print_lines([*_overview(console.width), "", *lines], console)
        return
    section = topic.replace("-", "_")
    if not is_section(section):
        raise ConfigError(
            f"--help: there is no section {topic!r}; there are: {', '.join(sections)}, and {ALL}"
        )
    _print_lines(_section_lines(section, console.width), console)


def is_section(name: str) -> bool:
    """Tell whether there is a section of settings with that name."""
    return any(setting.startswith(f"{name}.") for setting in all_settings())


def _sections() -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in all_settings()))


def _overview(width: int) -> list[str]:
    """The commands, the most used options, and where to read on."""
    sections = ", ".join(_sections())
    return [
        f"{this_command()} [COMMAND] [OPTIONS] [--section.setting VALUE ...]",
        "",
        "Commands (run.py COMMAND --help says more)",
        *_rows(_summaries().items(), NAME_COLUMNS, width),
        "",
        "Options of a run",
        *_rows(RUN_OPTIONS.items(), NAME_COLUMNS, width),
        *_rows(_short_options().items(), NAME_COLUMNS, width),
        "",
        "--help SECTION lists the settings of a section, --help all every one. Sections:",
        *textwrap.wrap(sections, width - MARGIN, initial_indent="  ", subsequent_indent="  "),
        "Guides: docs/guides/. Settings and metrics: docs/reference/.",
    ]


def _summaries() -> dict[str, str]:
    """Commands with their summaries; those that share one are named together."""
    names_by_summary: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        names_by_summary.setdefault(command.summary, []).append(name)
    return {", ".join(names): summary for summary, names in names_by_summary.items()}


def _short_options() -> dict[str, str]:
    """The most used options: what they do, their choices, and what a run without any has."""
    rows = {}
    settings = all_settings()
    plain = resolve_new(None, {}, serial=False)
    for short, full in SHORT_NAMES.items():
        metavar, text = HEADLINES[short]
        choices = choices_of(settings[full])
        if choices:
            text += f": {', '.join(choices)}"
        text += _describe_default(full, plain)
        rows[f"{_option(short)} {metavar}"] = text
    return rows


def _describe_default(full: str, plain: Resolution) -> str:
    """The value of a setting in a plain run; where a recipe gives it, the default of others too."""
    default = default_of(all_settings()[full])
    value = flatten_config(plain.config)[full]
    if value == default:
        return f" [{_format_value(value)}]" if value != "" else ""
    return f" [{_format_value(value)} by {plain.sources[full]}, else {_format_value(default)}]"


def _section_lines(section: str, width: int) -> list[str]:
    """Every setting of a section and of those inside it: its use, choices, and default."""
    rows = {
        _option(name): describe_setting(name, field)
        for name, field in all_settings().items()
        if name.startswith(f"{section}.")
    }
    lines = [f"Settings: {section}", *_rows(rows.items(), LONG_NAME_COLUMNS, width)]
    if section == "env":
        lines += _environment_lines(width)
    if section == "eval":
        lines += _set_lines(width)
    return lines


def _environment_lines(width: int) -> list[str]:
    """Every setting of each environment that declares any."""
    lines: list[str] = []
    for environment in environment_names():
        try:
            fields = environment_fields(environment)
        except ConfigError as error:  # somebody's package, which is nothing to the others
            lines += ["", str(error)]
            continue
        rows = {_option(name): describe_setting(name, field) for name, field in fields.items()}
        if rows:
            lines += ["", f"Settings of environment {environment}"]
            lines += _rows(rows.items(), LONG_NAME_COLUMNS, width)
    return lines


def _set_lines(width: int) -> list[str]:
    """The settings of an evaluation set, whatever its name is."""
    rows = {
        _option(name): describe_setting(name, field)
        for name, field in set_fields(["NAME"], "").items()
    }
    rows[_option(f"{EVALUATION_SETS}.NAME.settings.SETTING")] = (
        "A setting of the environment that is another one for the set"
    )
    return ["", "Settings of an evaluation set", *_rows(rows.items(), LONG_NAME_COLUMNS, width)]


def describe_setting(name: str, field: msgspec.inspect.Field) -> str:
    """Say what a setting does, its choices and its default.

    The values of recipes are named, too: those that a run takes by itself are other defaults.
    """
    notes = []
    types = types_with(name)
    if types:
        notes.append(f"for {', '.join(types)}")
    choices = choices_of(field)
    if choices:
        notes.append(f"one of {', '.join(choices)}")
    default = default_of(field)
    if default not in ("", []):
        others = recipe_values(name, own=True)
        notes.append(f"default {', '.join([_format_value(default), *others])}")
    asked = recipe_values(name, own=False)
    if asked:
        notes.append(f"recipes: {', '.join(asked)}")
    if not notes:
        return description(field)
    return f"{description(field)} [{'; '.join(notes)}]"


def recipe_values(full: str, own: bool) -> list[str]:
    """Recipes with a setting, each with its value: those of `own` are taken by a run by itself.

    What chooses them, the model and the environment, is not named.
    """
    if full in ("model.name", "env.name"):
        return []
    return [
        f"{name} {_format_value(settings[full])}"
        for name, settings in all_recipes().items()
        if full in settings and is_own_recipe(name) == own
    ]


def types_with(name: str) -> list[str]:
    """The types of a tagged section that have a setting; none if all have, or it is elsewhere."""
    section, _, key = name.rpartition(".")
    types = tagged_sections().get(section, {})
    having = [kind for kind, settings in types.items() if key in settings]
    if len(having) == len(types):
        return []
    return having


def choices_of(field: msgspec.inspect.Field) -> list[str]:
    """The values that an enumerated setting may have; none for other settings."""
    kind = kind_of(field)
    if not isinstance(kind, msgspec.inspect.LiteralType):
        return []
    return [str(value) for value in kind.values]


def _option(name: str) -> str:
    """A setting as an option of the command line, whose words are separated by dashes."""
    return f"--{name.replace('_', '-')}"


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(value)
    return str(value)


def _rows(rows: Iterable[tuple[str, str]], name_columns: int, width: int) -> list[str]:
    """Lines of names with texts beside them; a name that is too long has a line of its own."""
    lines = []
    for name, text in rows:
        indent = " " * (MARGIN + name_columns)
        wrapped = textwrap.wrap(text, max(40, width - len(indent)), break_on_hyphens=False)
        if len(name) < name_columns:
            first = f"{' ' * MARGIN}{name:<{name_columns}}{wrapped[0]}"
            lines += [first, *(indent + line for line in wrapped[1:])]
        else:
            lines += [f"{' ' * MARGIN}{name}", *(indent + line for line in wrapped)]
    return lines


def _print_lines(lines: Iterable[str], console: Console) -> None:
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
