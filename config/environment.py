"""Settings of the environment, and of each of the built-in ones."""

from __future__ import annotations

from typing import Annotated, Literal

from config.section import Section, says


class EnvSection(Section):
    """Which environment is played, and what all environments have."""

    name: Annotated[
        str,
        says(
            "Environment: alfworld, webshop, search, textarena, gymnasium, or one registered by "
            "entry point"
        ),
    ] = "alfworld"
    max_turns: Annotated[
        int,
        says(
            "Turns an episode may take; 0: the environment's own limit (ALFWorld: small 20, "
            "real 50; webshop 15; search 4; others 30)",
            ge=0,
        ),
    ] = 0
    history: Annotated[
        int,
        says(
            "Past pairs of action and observation in the prompt; -1: the environment's own "
            "number (ALFWorld 1, webshop 2, others 4)",
            ge=-1,
            le=50,
        ),
    ] = -1


class AlfWorldSection(Section):
    """Household tasks."""

    data: Annotated[
        str,
        says(
            "Directory of ALFWorld's own games; not given: that of ALFWORLD_DATA; empty: "
            "generated games"
        ),
    ] = ""
    held_out: Annotated[
        Literal["valid_unseen", "valid_seen"],
        says("Split of ALFWorld's own games that is held out"),
    ] = "valid_unseen"
    scene_size: Annotated[
        Literal["small", "real"],
        says("Size of generated games: about six places, or the whole real room"),
    ] = "small"
    task_types: Annotated[list[str], says("Task types to play; empty: all six")] = []
    memory: Annotated[
        Literal["none", "contents"],
        says(
            "Memory of the episode in the prompt: none, or what was seen where and which places "
            "are unsearched"
        ),
    ] = "contents"


class WebShopSection(Section):
    """Shopping tasks."""

    data: Annotated[
        str,
        says(
            "Directory of WebShop's files; empty: that of WEBSHOP_DATA, or else generated products"
        ),
    ] = ""
    task_types: Annotated[list[str], says("Goals: human, synthetic; empty: both")] = []


class SearchSection(Section):
    """Questions that are answered by searching passages."""

    questions: Annotated[
        str, says("JSONL file of questions; empty: those that come with the project")
    ] = ""
    corpus: Annotated[
        str, says("JSONL file of passages to search; empty: those that come with the project")
    ] = ""
    url: Annotated[
        str,
        says(
            "Address of a Search-R1 retrieval server, http://HOST:PORT/retrieve; empty: each "
            "actor searches by itself"
        ),
    ] = ""
    topk: Annotated[int, says("Passages a search returns", ge=1)] = 3


class TextArenaSection(Section):
    """Games of TextArena."""

    game: Annotated[str, says("Name of a game for one player in TextArena")] = "GuessTheNumber-v0"


class GymnasiumSection(Section):
    """Environments of Gymnasium."""

    id: Annotated[str, says("Name of a registered environment")] = "FrozenLake-v1"
    arguments: Annotated[
        list[str], says("Arguments of its constructor as name=value, values as in JSON")
    ] = []
    actions: Annotated[
        list[str],
        says("Names of its actions, in order; empty: those of games we know, or numbers"),
    ] = []
    task: Annotated[str, says("Task as the agent is told it; empty: that of a game we know")] = ""


ENVIRONMENTS = ("alfworld", "webshop", "search", "textarena", "gymnasium")
"""Environments with a section of their name."""
