"""The pages of docs/reference that are made from the code: settings, metrics and messages.

`python -m supervisor.cli.reference` writes them anew; a test holds that they are current.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.inspect import (
    BoolType,
    DictType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    StrType,
    StructType,
    Type,
    UnionType,
)

from config import Config, EvalSetSection
from config.options import (
    SHORT_NAMES,
    all_settings,
    as_struct_type,
    default_of,
    description,
    environment_fields,
    is_section,
    kind_of,
)
from config.sets import EVALUATION_SETS, set_fields
from config.template_arguments import TEMPLATE_ARGUMENTS
from envs.registry import BUILT_IN_SETTINGS
from protocol import messages
from protocol.files import atomic_write
from supervisor.cli.help import recipe_values
from telemetry.metrics_schema import METRICS

DIRECTORY = Path(__file__).parents[2] / "docs" / "reference"

MADE = "<!-- Made by `python -m supervisor.cli.reference`: change the code, not this page. -->"

SETTINGS_HEAD = f"""# Settings

{MADE}

A setting is `--section.name VALUE` on the command line, and `name = VALUE` under `[section]` in a
TOML file (`--config FILE`). Lists are separated by commas on the command line.

Behind a default stand the values of [recipes](recipes.md) that a run takes by itself, such as
`tiny`, that of the default model. `python run.py --dry-run` prints what a run would use.
"""

METRICS_HEAD = f"""# Metrics

{MADE}

Every number of `metrics.jsonl`, of TensorBoard (as `group/name`) and of `/metrics` for Prometheus
(as `foray_name`). Exploration's formulas, and what they do not see:
[measurements](../measurements/exploration.md).

| over an update | a number is |
|---|---|
| value | carried by the message of the update or evaluation |
| latest | the last gauge before the update |
| mean | the mean of the gauges since the update before |
| peak | the largest gauge since the update before |
| total | the update's own share as NAME, and the count since the run started as NAME_total |

Derived names: `success/TASK_TYPE`, `score/NAME` (what the environment reports), `pass_at/K` (tasks
that one of K samples solves), `NAME/age0`, `NAME/age1`, … (of tokens so many versions old), and
`eval/SET/NAME` (of a named set of an evaluation).
"""

MESSAGES_HEAD = f"""# Messages

{MADE}

Everything that one process sends to another is a msgspec struct of `protocol/messages.py`:
positional, tagged, with a schema version. What each field holds stands there. Arrays are raw
little-endian bytes. A message that does not decode, or says what cannot be, is counted and dropped.

Between learner, controller and supervisor each message is numbered and confirmed
(`protocol/delivery.py`).
"""

TYPE_NAMES: dict[type[Type], str] = {
    BoolType: "true, false",
    IntType: "whole number",
    FloatType: "number",
    StrType: "text",
}


def settings_page() -> str:
    """Return docs/reference/settings.md."""
    parts = [SETTINGS_HEAD]
    for field in as_struct_type(msgspec.inspect.type_info(Config)).fields:
        parts += _section(field.name, kind_of(field))
        if field.name == "env":
            parts += _environments()
        if field.name == "model":
            parts += _template_arguments()
        if field.name == "eval":
            parts += _evaluation_sets()
    return "\n".join(parts)


def _template_arguments() -> Iterator[str]:
    yield f"## [{TEMPLATE_ARGUMENTS}]"
    yield ""
    yield "Arguments of the model's chat template, by its own names, as `enable_thinking = false`."
    yield ""


def _environments() -> Iterator[str]:
    """Yield the settings of each environment that comes with the project."""
    for name in BUILT_IN_SETTINGS:
        yield f"## [env.settings] of {name}"
        yield ""
        yield "| setting | values | default | what it does |"
        yield "|---|---|---|---|"
        for field in environment_fields(name).values():
            yield _setting_row("env.settings", field)
        yield ""


def _evaluation_sets() -> Iterator[str]:
    """Yield the settings of an evaluation set, whatever its name is."""
    section = f"{EVALUATION_SETS}.NAME"
    yield f"## [{section}]"
    yield ""
    yield _first_sentence(EvalSetSection)
    yield ""
    yield f"`[{section}.settings]` has the settings of the environment that are others for it."
    yield ""
    yield "| setting | values | default | what it does |"
    yield "|---|---|---|---|"
    for field in set_fields(["NAME"], "").values():
        yield _setting_row(section, field)
    yield ""


def metrics_page() -> str:
    """Return docs/reference/metrics.md."""
    parts = [METRICS_HEAD]
    groups = dict.fromkeys(metric.group for metric in METRICS.values())
    for group in groups:
        parts += [
            f"## {group}",
            "",
            "| name | unit | over an update | meaning |",
            "|---|---|---|---|",
        ]
        for name, metric in METRICS.items():
            if metric.group == group:
                cells = (f"`{name}`", metric.unit, metric.aggregation, metric.description)
                parts.append(_row(cells))
        parts.append("")
    return "\n".join(parts)


def messages_page() -> str:
    """Return docs/reference/messages.md."""
    structs = [
        struct
        for struct in vars(messages).values()
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct)
    ]
    whole = [struct for struct in structs if issubclass(struct, messages.Message)]
    pieces = [struct for struct in structs if not issubclass(struct, messages.Message)]
    whole.remove(messages.Message)
    parts = [MESSAGES_HEAD, "```", *_directions(), "```", ""]
    parts += ["## Messages", "", *_message_table(whole), ""]
    parts += ["## What they are made of", "", *_message_table(pieces), ""]
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "messages.md": messages_page,
}
"""Page -> what makes it."""


def write_pages(directory: Path = DIRECTORY) -> None:
    """Write all pages into `directory`."""
    for name, make_page in PAGES.items():
        atomic_write(directory / name, make_page())


def _directions() -> Iterator[str]:
    """Yield the lines of protocol/messages.py that say who sends what."""
    for line in (messages.__doc__ or "").splitlines():
        if " -> " in line:
            yield line.strip()


def _message_table(structs: Sequence[type[msgspec.Struct]]) -> Iterator[str]:
    yield "| name | what it says | fields |"
    yield "|---|---|---|"
    for struct in structs:
        fields = ", ".join(f"`{field}`" for field in struct.__struct_fields__)
        yield _row((f"`{struct.__name__}`", _first_sentence(struct), fields or "–"))


def _section(name: str, kind: Type) -> Iterator[str]:
    """Yield the lines of a section: its heading, its table, then the sections inside it."""
    if isinstance(kind, UnionType):
        for variant in kind.types:
            if isinstance(variant, StructType):
                yield from _struct(name, variant)
    elif isinstance(kind, StructType):
        yield from _struct(name, kind)


def _struct(name: str, kind: StructType) -> Iterator[str]:
    yield f"## [{name}]{_tag(kind)}"
    yield ""
    yield _first_sentence(kind.cls)
    yield ""
    rows = [
        _setting_row(name, field)
        for field in kind.fields
        if not is_section(kind_of(field)) and not isinstance(kind_of(field), DictType)
    ]
    for field in kind.fields:
        chosen = all_settings().get(f"{name}.{field.name}.type")
        if chosen is not None:
            rows.append(_setting_row(f"{name}.{field.name}", chosen))
    if rows:
        yield "| setting | values | default | what it does |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    for field in kind.fields:
        if is_section(kind_of(field)):
            yield from _section(f"{name}.{field.name}", kind_of(field))


def _tag(kind: StructType) -> str:
    """Return how a variant of a section is chosen, as ` type = "tis"`."""
    if kind.tag is None:
        return ""
    return f" {kind.tag_field} = {json.dumps(kind.tag)}"


def _first_sentence(cls: type) -> str:
    documentation = inspect.getdoc(cls) or ""
    return " ".join(documentation.partition("\n\n")[0].split())


def _setting_row(section: str, field: msgspec.inspect.Field) -> str:
    full = f"{section}.{field.name}"
    names = [f"`{full}`"]
    names += [
        f"`--{short.replace('_', '-')}`" for short, name in SHORT_NAMES.items() if name == full
    ]
    default = ", ".join([_default(field), *recipe_values(full, own=True)])
    cells = (", ".join(names), _values(kind_of(field)), default, description(field))
    return _row(cells)


def _values(kind: Type) -> str:
    """Return what a setting may be: its choices, or its type and bounds."""
    if isinstance(kind, LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, ListType):
        return "list"
    if isinstance(kind, UnionType):
        return " or ".join(_values(variant) for variant in kind.types)
    return TYPE_NAMES.get(type(kind), "") + _bounds(kind)


def _bounds(kind: Type) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [(sign, getattr(kind, name, None)) for name, sign in signs.items()]
    return ",".join(f" {sign} {bound:g}" for sign, bound in bounds if bound is not None)


def _default(field: msgspec.inspect.Field) -> str:
    value = default_of(field)
    if value in ("", [], {}, None, msgspec.NODEFAULT):
        return "–"
    return f"`{json.dumps(value, default=str)}`"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    write_pages()
