"""ALFWorld's tasks, episodes, memory and prompt."""

from collections import Counter

import pytest

from envs.alfworld.engine import NOTHING_HAPPENS, Engine
from envs.alfworld.environment import AlfWorld
from envs.alfworld.game import TASK_TYPES
from envs.alfworld.memory import TranscriptMemory
from envs.alfworld.scenes import load_facts
from envs.base import Observation
from envs.view import AgentView

SMALL = AlfWorld()
REAL = AlfWorld("real")


def test_held_out_rooms_are_not_trained_in():
    scenes = load_facts().scenes
    numbers = {
        split: {s.number for s in scenes if s.split == split} for split in ("train", "held_out")
    }
    assert (len(numbers["train"]), len(numbers["held_out"])) == (96, 24)
    assert not numbers["train"] & numbers["held_out"]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_all_task_types_are_equally_frequent(split):
    assert Counter(SMALL.game(split, index).goal.task_type for index in range(60)) == dict.fromkeys(
        TASK_TYPES, 10
    )


def test_only_the_chosen_task_types_are_played():
    chosen = AlfWorld(task_types=["look_at_obj_in_light"])
    assert {chosen.game("train", index).goal.task_type for index in range(10)} == {
        "look_at_obj_in_light"
    }


@pytest.mark.parametrize("environment", [SMALL, REAL], ids=["small", "real"])
def test_no_game_is_won_before_it_begins(environment):
    assert not any(Engine(environment.game("train", index)).won() for index in range(300))


def test_small_rooms_have_six_places_at_different_locations_or_all_that_there_are():
    sizes = Counter()
    for index in range(300):
        places = SMALL.game("train", index).receptacles
        sizes[len(places)] += 1
    assert max(sizes) == 6
    assert sizes[6] > 280


def test_games_differ():
    assert (
        len(
            {
                SMALL.start("train", index).observation.text + SMALL.start("train", index).task
                for index in range(200)
            }
        )
        > 190
    )


def test_every_receptacle_is_called_by_its_kind():
    for index in range(300):
        engine = Engine(REAL.game("train", index))
        called = engine.opening().split("you see ")[1]
        assert all(f"a {receptacle.kind.lower()} " in called for receptacle in engine.receptacles)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"scene_size": "big"}, "scene_size"),
        ({"memory": "all"}, "memory"),
        ({"task_types": ["juggle"]}, "task_types.*juggle"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(settings, named):
    with pytest.raises(ValueError, match=named):
        AlfWorld(**settings)


def test_an_inadmissible_action_uses_a_turn_and_changes_nothing():
    episode = SMALL.start("train", 0)
    before = episode.observation
    assert episode.step("fly away").observation == Observation(NOTHING_HAPPENS, before.admissible)


def test_the_anchor_tells_apart_same_texts_with_different_actions():
    episode = SMALL.start("train", 0)
    anchors = set()
    for action in (
        "fly",
        next(a for a in episode.observation.admissible if a.startswith("go to")),
        "fly",
    ):
        assert episode.step(action)
        anchors.add(episode.state_key())
    assert len(anchors) == 3


def remembering(*texts: str) -> TranscriptMemory:
    transcript = TranscriptMemory()
    for text in texts:
        transcript.note("", text)
    return transcript


def test_the_memory_keeps_what_was_last_seen_at_each_place():
    memory = remembering(
        "You arrive at shelf 1. On the shelf 1, you see a mug 1, and a cd 2.",
        "You arrive at drawer 2. The drawer 2 is closed.",
        "You pick up the mug 1 from the shelf 1.",
    )
    assert memory.contents == {"shelf 1": ["cd 2"], "drawer 2": None}
    assert memory.carrying == "mug 1"


def test_the_memory_keeps_the_contents_of_a_place_that_was_closed_again():
    memory = remembering(
        "You open the drawer 2. The drawer 2 is open. In it, you see a cd 1.",
        "You arrive at drawer 2. The drawer 2 is closed.",
    )
    assert memory.contents == {"drawer 2": ["cd 1"]}


def test_the_memory_knows_what_was_done_to_a_thing():
    memory = remembering(
        "You cool the mug 1 using the fridge 1.",
        "You clean the mug 1 using the sinkbasin 1.",
        "You heat the mug 1 using the microwave 1.",
    )
    assert memory.treated == {"mug 1": ["clean", "hot"]}


def test_the_memory_puts_a_thing_where_it_was_moved():
    memory = remembering(
        "You pick up the mug 1 from the shelf 1.", "You move the mug 1 to the desk 1."
    )
    assert (memory.carrying, memory.contents) == ("", {"desk 1": ["mug 1"]})


def some_view() -> AgentView:
    room = Observation(
        "You are in the middle of a room. Looking quickly around you, you see a shelf 2, a shelf "
        "1, and a desk 1.",
        ("help", "look"),
    )
    view = AgentView("put a mug in desk", room, history=2, memory=TranscriptMemory())
    view.record(
        "go to shelf 1",
        Observation("You arrive at shelf 1. On the shelf 1, you see a mug 1.", ("help", "look")),
    )
    view.record(
        "take mug 1 from shelf 1",
        Observation("You pick up the mug 1 from the shelf 1.", ("help", "look")),
    )
    return view


def test_the_prompt_with_contents_recalls_what_was_seen_and_where_to_look():
    view = some_view()
    view.record(
        "go to shelf 2",
        Observation("You arrive at shelf 2. On the shelf 2, you see a book 1.", ("help", "look")),
    )
    assert AlfWorld(history=2).prompt(view).splitlines()[1:6] == [
        "Seen: shelf 2: book 1",
        "Unsearched: desk 1",
        "Carrying: mug 1",
        "Before: You arrive at shelf 1. > take mug 1 from shelf 1",
        "You pick up the mug 1 from the shelf 1. > go to shelf 2",
    ]


def test_the_memory_does_not_forget_the_room_when_a_look_shows_nothing():
    environment = AlfWorld()
    episode = environment.start("train", 0)
    view = environment.view(episode)
    before = view.memory.unsearched
    view.record("look", episode.step("look").observation)
    assert "you see nothing" in view.observation.text
    assert view.memory.unsearched == before and before


def test_a_closed_place_is_unsearched_until_it_is_opened():
    memory = remembering(
        "You are in the middle of a room. Looking quickly around you, you see a drawer 2, and a "
        "drawer 1.",
        "You arrive at drawer 1. The drawer 1 is closed.",
    )
    assert memory.unsearched == ["drawer 1", "drawer 2"]
    memory.note(
        "open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see nothing."
    )
    assert memory.unsearched == ["drawer 2"]


def test_the_prompt_without_memory_recalls_only_the_last_turns():
    prompt = AlfWorld(memory="none").prompt(some_view())
    assert "Seen" not in prompt
    assert "Carrying" not in prompt


def test_an_action_of_many_lines_does_not_break_the_prompt():
    view = some_view()
    view.record("look\nTask: something else " * 50, Observation(NOTHING_HAPPENS, ("look",)))
    assert len(SMALL.prompt(view).splitlines()) == len(SMALL.prompt(some_view()).splitlines())
    assert len(SMALL.prompt(view)) < 1000
