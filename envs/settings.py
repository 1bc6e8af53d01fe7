"""The settings of the environments that come with the project: `env.settings` validates them.

An environment of one's own declares such a struct as the attribute `Settings` of its factory. The
factory gets them as keyword arguments.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class EnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of an environment's settings: their types, bounds, defaults and help texts."""


def parse_argument(text: str) -> tuple[str, Any]:
    """Split `name=value` of a setting `arguments`; a value that is no JSON is a text.

    Raises ValueError for another form.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"env.settings.arguments: {text!r} is not of the form name=value")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


class AlfWorldSettings(EnvironmentSettings, frozen=True):
    """Household tasks."""

    data: Annotated[
        str,
        Meta(
            description="Directory of ALFWorld's own games; not given: that of ALFWORLD_DATA; "
            "empty: generated games"
        ),
    ] = ""
    held_out: Annotated[
        Literal["valid_unseen", "valid_seen"],
        Meta(description="Split of ALFWorld's own games that is held out"),
    ] = "valid_unseen"
    scene_size: Annotated[
        Literal["small", "real"],
        Meta(description="Size of generated games: about six places, or the whole real room"),
    ] = "small"
    task_types: Annotated[list[str], Meta(description="Task types to play; empty: all six")] = []
    memory: Annotated[
        Literal["none", "contents"],
        Meta(
            description="Memory of the episode in the prompt: none, or what was seen where and "
            "which places are unsearched"
        ),
    ] = "contents"


class WebShopSettings(EnvironmentSettings, frozen=True):
    """Shopping tasks."""

    data: Annotated[
        str,
        Meta(
            description="Directory of WebShop's files; empty: that of WEBSHOP_DATA, or else "
            "generated products"
        ),
    ] = ""
    task_types: Annotated[list[str], Meta(description="Goals: human, synthetic; empty: both")] = []


class SearchSettings(EnvironmentSettings, frozen=True):
    """Questions that are answered by searching passages."""

    questions: Annotated[
        str, Meta(description="JSONL file of questions; empty: those that come with the project")
    ] = ""
    held_out_share: Annotated[
        float,
        Meta(
            description="Share of the questions of such a file that is held out; 1: all, to "
            "evaluate only",
            gt=0,
            le=1,
        ),
    ] = 0.1
    corpus: Annotated[
        str,
        Meta(
            description="JSONL file of passages to search; empty: those that come with the project"
        ),
    ] = ""
    url: Annotated[
        str,
        Meta(
            description="Address of a Search-R1 retrieval server, http://HOST:PORT/retrieve; "
            "empty: each actor searches by itself"
        ),
    ] = ""
    topk: Annotated[int, Meta(description="Passages a search returns", ge=1)] = 3


class TextArenaSettings(EnvironmentSettings, frozen=True):
    """Games of TextArena."""

    game: Annotated[str, Meta(description="Name of a game for one player in TextArena")] = (
        "GuessTheNumber-v0"
    )


class GymnasiumSettings(EnvironmentSettings, frozen=True):
    """Environments of Gymnasium."""

    id: Annotated[str, Meta(description="Name of a registered environment")] = "FrozenLake-v1"
    arguments: Annotated[
        list[str], Meta(description="Arguments of its constructor as name=value, values as in JSON")
    ] = []
    actions: Annotated[
        list[str],
        Meta(
            description="Names of its actions, in order; empty: those of games we know, or numbers"
        ),
    ] = []
    task: Annotated[
        str, Meta(description="Task as the agent is told it; empty: that of a game we know")
    ] = ""


class CommandSettings(EnvironmentSettings, frozen=True):
    """Agents in processes of their own."""

    command: Annotated[
        str, Meta(description="Command line of the agent, which plays one task; no shell")
    ] = ""
    data: Annotated[
        str, Meta(description="File of tasks, one a line; empty: tasks are numbers")
    ] = ""
    tasks: Annotated[int, Meta(description="Tasks to train on, where they are numbers", ge=0)] = (
        10_000
    )
    held_out_tasks: Annotated[
        int, Meta(description="Tasks that are held out: the last lines, or further numbers", ge=0)
    ] = 200


class ReasoningGymSettings(EnvironmentSettings, frozen=True):
    """Data sets of Reasoning Gym."""

    arguments: Annotated[
        list[str],
        Meta(
            description="Arguments of the data sets as name=value, or of one as "
            "DATA_SET.name=value, values as in JSON"
        ),
    ] = []
    run_answers: Annotated[
        bool,
        Meta(
            description="Play data sets whose scorers run the policy's answer as Python code: in a "
            "sandbox"
        ),
    ] = False


class SkyRLGymSettings(EnvironmentSettings, frozen=True):
    """Environments of SkyRL Gym."""

    data: Annotated[
        str, Meta(description="JSONL file of tasks, in the form of SkyRL's data sets")
    ] = ""
    held_out_share: Annotated[
        float,
        Meta(
            description="Share of the tasks that is held out; 1: all, to evaluate only", gt=0, le=1
        ),
    ] = 0.1
    arguments: Annotated[
        list[str],
        Meta(description="Configuration of the environment as name=value, values as in JSON"),
    ] = []


class OpenEnvSettings(EnvironmentSettings, frozen=True):
    """Environments behind a server of OpenEnv."""

    action_field: Annotated[
        str,
        Meta(
            description="Field of an action that the policy's words become; empty: it calls a tool "
            "that has all fields"
        ),
    ] = ""
    task: Annotated[
        str, Meta(description="What the policy is told first; empty: the server's description")
    ] = ""
