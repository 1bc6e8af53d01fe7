"""TextWorld's rules where they surprise.

The texts and command lists as a whole are held by the parity and transcript tests.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.alfworld.engine import NOTHING_HAPPENS, Engine, join_phrases
from envs.alfworld.environment import AlfWorld
from envs.alfworld.game import Game, Goal, Item, Receptacle, name_entities, pddl_token
from envs.alfworld.memory import TranscriptMemory
from envs.alfworld.scenes import load_facts
from tests.fixtures.examples import scale_examples

FACTS = load_facts()


def receptacle(kind: str, location: str, number: int = 1) -> Receptacle:
    return Receptacle(pddl_token(f"{kind}|+0{number}.00"), kind, location, kind in FACTS.openable)


def item(kind: str, place: Receptacle, number: int = 1) -> Item:
    return Item(
        pddl_token(f"{kind}|+0{number}.00"),
        kind,
        (place.id,),
        (place.location,),
        FACTS.affordances[kind],
    )


COUNTER = receptacle("CounterTop", "counter")
CABINET = receptacle("Cabinet", "corner")
DRAWER = receptacle("Drawer", "corner")
SHELF = receptacle("Shelf", "corner")
FRIDGE = receptacle("Fridge", "fridge")
DESK = receptacle("Desk", "desk")
PLACES = (COUNTER, CABINET, DRAWER, SHELF, FRIDGE, DESK)


def engine(goal: Goal, *items: Item) -> Engine:
    return Engine(Game("do it", goal, PLACES, items, "middle", FACTS.contains))


PUT_MUG_AWAY = (
    "go to countertop 1",
    "take mug 1 from countertop 1",
    "go to cabinet 1",
    "open cabinet 1",
    "move mug 1 to cabinet 1",
)
"""Actions in `kitchen` after which mug 1 lies in cabinet 1, which is open."""


def kitchen() -> Engine:
    goal = Goal("pick_cool_then_place_in_recep", "Mug", "Cabinet")
    return engine(
        goal,
        item("Mug", COUNTER),
        item("Apple", COUNTER),
        item("Knife", COUNTER),
        item("Candle", SHELF),
    )


def run(played: Engine, *commands: str) -> str:
    text = ""
    for command in commands:
        text = played.step(command)
        assert text != NOTHING_HAPPENS, command
    return text


def test_things_are_numbered_backwards_in_the_order_of_their_ids():
    assert name_entities(["mug_bar_2", "pot_bar_1", "mug_bar_1"]) == {
        "mug_bar_1": "mug 2",
        "mug_bar_2": "mug 1",
        "pot_bar_1": "pot 1",
    }


def test_the_basin_of_a_sink_is_called_a_sinkbasin():
    assert name_entities(["sink_bar_1_bar_sinkbasin"]) == {
        "sink_bar_1_bar_sinkbasin": "sinkbasin 1"
    }


@pytest.mark.parametrize(
    ("phrases", "text"),
    [([], "nothing"), (["a"], "a"), (["a", "b"], "a, and b"), (["a", "b", "c"], "a, b, and c")],
)
def test_lists_end_in_comma_and(phrases, text):
    assert join_phrases(phrases) == text


def test_looking_around_in_the_middle_of_the_room_shows_nothing():
    assert kitchen().step("look").endswith("you see nothing.")


@pytest.mark.parametrize(
    "command", ["fly", "Look", "go to cabinet 9", "take mug 1 from countertop 1", ""]
)
def test_what_cannot_be_done_changes_nothing(command):
    played = kitchen()
    before = played.admissible()
    assert (played.step(command), played.admissible()) == (NOTHING_HAPPENS, before)


def test_one_cannot_go_to_a_receptacle_that_is_where_one_is_but_can_open_it():
    played = kitchen()
    run(played, "go to cabinet 1")
    assert "go to drawer 1" not in played.admissible()
    assert "open drawer 1" in played.admissible()


def test_what_lies_in_a_closed_receptacle_cannot_be_taken():
    played = kitchen()
    run(played, *PUT_MUG_AWAY)
    assert "take mug 1 from cabinet 1" in played.admissible()
    run(played, "close cabinet 1")
    assert "take mug 1 from cabinet 1" not in played.admissible()


def test_only_one_thing_can_be_carried():
    played = kitchen()
    run(played, "go to countertop 1", "take mug 1 from countertop 1")
    assert not [command for command in played.admissible() if command.startswith("take")]


def test_a_thing_is_put_only_where_its_kind_fits():
    played = kitchen()
    run(
        played,
        "go to countertop 1",
        "take apple 1 from countertop 1",
        "go to cabinet 1",
        "open cabinet 1",
    )
    assert not [command for command in played.admissible() if command.startswith("move")]


def test_only_a_thing_in_hand_can_be_examined():
    played = kitchen()
    run(played, "go to countertop 1")
    assert "examine apple 1" not in played.admissible()
    assert (
        run(played, "take apple 1 from countertop 1", "examine apple 1")
        == "There's nothing special about apple 1."
    )


def test_a_closed_fridge_cools():
    played = kitchen()
    text = run(
        played,
        "go to countertop 1",
        "take apple 1 from countertop 1",
        "go to fridge 1",
        "cool apple 1 with fridge 1",
    )
    assert text == "You cool the apple 1 using the fridge 1."
    assert run(played, "examine apple 1") == "This is a cold apple 1."


def test_looking_shows_a_thing_moved_between_receptacles_at_one_location():
    played = kitchen()
    run(
        played,
        "go to shelf 1",
        "take candle 1 from shelf 1",
        "open drawer 1",
        "move candle 1 to drawer 1",
    )
    assert (
        played.step("look")
        == "You are facing the cabinet 1, drawer 1, and shelf 1. Next to it, you see a candle 1."
    )


def test_a_knife_in_hand_slices_what_is_at_the_location():
    played = kitchen()
    run(played, "go to countertop 1", "take knife 1 from countertop 1")
    assert run(played, "slice apple 1 with knife 1") == "You sliced the apple 1 with the knife 1."


def test_a_lamp_is_never_turned_off():
    played = engine(
        Goal("look_at_obj_in_light", "Book", lamp="DeskLamp"),
        item("DeskLamp", DESK),
        item("Book", SHELF),
    )
    assert (
        run(played, "go to desk 1", "use desklamp 1")
        == run(played, "use desklamp 1")
        == "You turn on the desklamp 1."
    )


def test_placing_an_untreated_target_does_not_win():
    played = kitchen()
    run(played, *PUT_MUG_AWAY)
    assert not played.won()


def test_heating_undoes_cooling_and_so_the_win():
    microwave = receptacle("Microwave", "microwave")
    goal = Goal("pick_cool_then_place_in_recep", "Mug", "Cabinet")
    played = Engine(
        Game("", goal, (*PLACES, microwave), (item("Mug", COUNTER),), "", FACTS.contains)
    )
    run(
        played,
        "go to countertop 1",
        "take mug 1 from countertop 1",
        "go to fridge 1",
        "cool mug 1 with fridge 1",
    )
    run(
        played,
        "go to microwave 1",
        "heat mug 1 with microwave 1",
        "go to cabinet 1",
        "open cabinet 1",
        "move mug 1 to cabinet 1",
    )
    assert not played.won()


def test_two_targets_must_be_in_the_same_receptacle():
    second = receptacle("Cabinet", "far corner", 2)
    items = (item("Mug", COUNTER), item("Mug", COUNTER, 2))
    played = Engine(
        Game(
            "",
            Goal("pick_two_obj_and_place", "Mug", "Cabinet"),
            (*PLACES, second),
            items,
            "",
            FACTS.contains,
        )
    )
    for mug, cabinet in (("mug 1", "cabinet 1"), ("mug 2", "cabinet 2")):
        run(played, "go to countertop 1", f"take {mug} from countertop 1")
        run(played, f"go to {cabinet}", f"open {cabinet}", f"move {mug} to {cabinet}")
    assert not played.won()
    run(played, "take mug 2 from cabinet 2", "go to cabinet 1", "move mug 2 to cabinet 1")
    assert played.won()


def test_looking_at_a_thing_in_light_needs_it_in_hand_beside_the_lamp():
    played = engine(
        Goal("look_at_obj_in_light", "Book", lamp="DeskLamp"),
        item("DeskLamp", DESK),
        item("Book", SHELF),
    )
    run(played, "go to desk 1", "use desklamp 1", "go to shelf 1", "take book 1 from shelf 1")
    assert not played.won()
    run(played, "go to desk 1")
    assert played.won()


@scale_examples(60)
@given(
    st.sampled_from(["small", "real"]), st.integers(0, 99_999), st.randoms(use_true_random=False)
)
def test_every_admissible_command_does_something_and_no_thing_is_lost(size, index, rng):
    played = Engine(AlfWorld(size).game("train", index))
    things = set(played.item_names)
    for _ in range(25):
        assert played.step(rng.choice(played.admissible())) != NOTHING_HAPPENS
    assert {thing for _, thing in lying(played)} | carried(played) == things


@scale_examples(60)
@given(st.integers(0, 99_999), st.integers(0, 2**32))
def test_the_memory_of_a_transcript_is_true(index, seed):
    rng = random.Random(seed)
    played = Engine(AlfWorld().game("train", index))
    memory = TranscriptMemory()
    for _ in range(25):
        command = rng.choice(played.admissible())
        memory.note(command, played.step(command))
    known = {(place, thing) for place, things in memory.contents.items() for thing in things or ()}
    opened_or_open = {place for place, things in memory.contents.items() if things is not None}
    assert known == {(place, thing) for place, thing in lying(played) if place in opened_or_open}
    assert {memory.carrying} - {""} == carried(played)


def lying(played: Engine) -> set[tuple[str, str]]:
    """(place, thing) of all things that lie somewhere, seen by the agent or not."""
    return {
        (played.receptacle_names[r], played.item_names[i])
        for r, contents in enumerate(played.contents)
        for i in contents
    }


def carried(played: Engine) -> set[str]:
    return set() if played.carried is None else {played.item_names[played.carried]}
