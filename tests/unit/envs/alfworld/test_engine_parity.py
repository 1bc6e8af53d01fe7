"""Our engine against TextWorld's, step by step on the same games.

Skipped where TextWorld is not installed.
"""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from envs.alfworld import extract, files, reference
from envs.alfworld.engine import Engine
from envs.alfworld.environment import AlfWorld
from envs.alfworld.game import TASK_TYPES, Game, Goal, Item, Receptacle
from envs.alfworld.scenes import load_facts
from tests.fixtures.alfworld import real_data  # noqa: F401

missing = reference.missing_packages()
pytestmark = pytest.mark.skipif(
    bool(missing),
    reason=f"not installed: {', '.join(missing)} (`make parity` installs and runs them)",
)

SMALL = AlfWorld()
REAL = AlfWorld("real")


def odd_game() -> Game:
    """Make a game of what generated ones never have.

    It has shared locations, open doors at the start, treated, nested and unreachable things.
    """
    facts = load_facts()

    def place(kind: str, number: int, location: str | None, opened: bool = False) -> Receptacle:
        return Receptacle(
            f"{kind.lower()}_bar_{number}", kind, location, kind in facts.openable, opened
        )

    def thing(
        kind: str,
        number: int,
        where: Receptacle | None,
        location: str,
        *state: str,
        inside: tuple[str, ...] = (),
    ) -> Item:
        places = (where.id,) if where else ()
        return Item(
            f"{kind.lower()}_bar_{number}",
            kind,
            places,
            (location,),
            facts.affordances[kind],
            frozenset(state),
            inside,
        )

    counter = place("CounterTop", 1, "here")
    fridge = place("Fridge", 1, "here", opened=True)
    cabinets = place("Cabinet", 1, "here"), place("Cabinet", 2, "here")
    microwave = place("Microwave", 1, "there", opened=True)
    desk = place("Desk", 1, "there")
    nowhere = place("Shelf", 1, None)
    sink = Receptacle("sink_bar_1_bar_sinkbasin", "SinkBasin", "there", False)
    items = (
        thing("Mug", 1, fridge, "here", "isCool", inside=("spoon_bar_1",)),
        thing("Mug", 2, cabinets[0], "here"),
        thing("Mug", 3, nowhere, "there"),
        thing("Spoon", 1, None, "here"),
        thing("Apple", 1, microwave, "there", "isHot", "isClean"),
        thing("Apple", 2, counter, "there", "isSliced"),
        thing("Egg", 1, cabinets[1], "here"),
        thing("Knife", 1, counter, "here"),
        thing("ButterKnife", 1, sink, "there"),
        thing("DeskLamp", 1, cabinets[1], "here"),
        thing("Potato", 1, None, "there"),
    )
    goal = Goal("pick_cool_then_place_in_recep", "Mug", "Microwave")
    places = (counter, fridge, *cabinets, microwave, desk, nowhere, sink)
    return Game("put a cool mug in microwave", goal, places, items, "there", facts.contains)


def assert_alike(
    game: Game, commands: list[str], steps: int, rng: random.Random, problem: str = ""
) -> None:
    """First `commands`, then wandering, `steps` in all.

    `problem`: of a game that was read from a file.
    """
    original = reference.TextWorldGame(game, problem)
    ours = Engine(game)
    assert ours.opening() == original.text
    for number in range(steps):
        assert ours.admissible() == original.admissible
        command = (
            commands[number]
            if number < len(commands)
            else reference.draw_command(ours.admissible(), rng)
        )
        said = original.step(command)
        assert (command, ours.step(command)) == (command, said)
        assert (ours.won(), ours.won()) == (original.won, original.done)
        assert original.score == int(ours.won())


@pytest.mark.parametrize("index", range(len(TASK_TYPES)))
def test_wandering_in_a_small_room_is_the_same(index):
    assert_alike(SMALL.game("train", index), [], 40, random.Random(index))


@pytest.mark.parametrize("index", range(len(TASK_TYPES)))
def test_winning_is_the_same(index):
    commands = reference.expert_commands(SMALL, "train", index)
    assert_alike(SMALL.game("train", index), commands, len(commands), random.Random(index))


@pytest.mark.parametrize("index", [0, 1])
def test_wandering_in_a_real_room_is_the_same(index):
    assert_alike(REAL.game("held_out", index), [], 40, random.Random(index))


# Every adjective that `examine` knows, and every receptacle at once.
EXAMINATIONS = """
take butterknife 1 from sinkbasin 1; slice apple 1 with butterknife 1
slice apple 2 with butterknife 1; move butterknife 1 to sinkbasin 1
take apple 2 from microwave 1; examine apple 2; go to fridge 1; cool apple 2 with fridge 1
examine apple 2; move apple 2 to countertop 1
look; take apple 1 from countertop 1; examine apple 1; cool apple 1 with fridge 1; examine apple 1
go to microwave 1
heat apple 1 with microwave 1; examine apple 1; clean apple 1 with sinkbasin 1; examine apple 1
move apple 1 to microwave 1
go to cabinet 1; open cabinet 1; take egg 1 from cabinet 1; examine egg 1; cool egg 1 with fridge 1
examine egg 1; go to desk 1
clean egg 1 with sinkbasin 1; examine egg 1; heat egg 1 with microwave 1; examine egg 1
move egg 1 to sinkbasin 1; look; go to fridge 1
take mug 3 from fridge 1; examine mug 3; move mug 3 to countertop 1; look; open cabinet 2
take mug 2 from cabinet 2; examine mug 2
use desklamp 1; use desklamp 1; go to microwave 1; cool mug 2 with fridge 1
move mug 2 to microwave 1; go to countertop 1
take mug 3 from countertop 1; go to microwave 1; move mug 3 to microwave 1
"""


def test_every_treatment_and_examination_is_the_same():
    commands = [
        command.strip() for line in EXAMINATIONS.strip().splitlines() for command in line.split(";")
    ]
    assert_alike(odd_game(), commands, len(commands), random.Random(0))


@pytest.mark.parametrize("seed", [2, 3])
def test_wandering_in_an_odd_game_is_the_same(seed):
    assert_alike(odd_game(), [], 50, random.Random(seed))


def test_the_shipped_layouts_are_what_alfworld_has():
    installed = Path(find_spec("alfworld").origin).parent.parent
    assert json.loads(extract.OUTPUT.read_text()) == json.loads(
        json.dumps(extract.extract_facts(extract.open_source(installed)))
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_wandering_in_real_games_is_the_same(real_data, part):  # noqa: F811
    """5,000 steps in 200 games in all, ten minutes of TextWorld's time."""
    for file in files.find_games(real_data / "json_2.1.1" / "train")[part::10]:
        assert_alike(
            files.read_game(file), [], 25, random.Random(file.parent.name), files.read_problem(file)
        )
