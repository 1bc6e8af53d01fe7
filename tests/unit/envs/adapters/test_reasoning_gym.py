"""Data sets of Reasoning Gym behind our interface."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym import create_dataset

from envs.adapters.reasoning_gym import SIZES, ReasoningGym, split_of
from envs.base import Split
from envs.conversation import Message, Reply
from envs.registry import make_environment, settings_of_environment
from envs.settings import ReasoningGymSettings

MIXED = ReasoningGym("tower_of_hanoi,leg_counting")

TASKS = st.tuples(st.sampled_from(["train", "held_out"]), st.integers(0, 999))


def answer(text: str, arguments: tuple[str, ...] = (), index: int = 0) -> Reply:
    """What follows an answer in the tags to a task of leg_counting."""
    task = ReasoningGym("leg_counting", arguments).start("train", index, 0)
    return task.reply(Message("assistant", f"Let me see. <answer>{text}</answer>"))


def find_legs(question: str) -> str:
    """The library's own answer to a question of leg_counting."""
    data_set = create_dataset("leg_counting", seed=0, size=SIZES["train"])
    return next(entry["answer"] for entry in data_set if entry["question"] == question)


def test_right_answer_is_a_success_by_the_librarys_scorer() -> None:
    question = ReasoningGym("leg_counting").start("train", 0, 0).task
    reply = answer(find_legs(question))
    assert (reply.reward, reply.done, reply.success, reply.valid) == (1.0, True, True, True)


def test_wrong_answer_earns_what_the_scorer_gives() -> None:
    reply = answer("-1")
    assert 0 <= reply.reward < 1 and not reply.success and reply.valid


def test_answer_without_tags_is_invalid_and_earns_nothing() -> None:
    task = MIXED.start("train", 1, 0)
    reply = task.reply(Message("assistant", find_legs(task.task)))
    assert (reply.reward, reply.done, reply.valid) == (0.0, True, False)


def test_answer_that_the_scorer_cannot_read_earns_nothing() -> None:
    """The scorer of this data set raises for what is no number."""
    task = ReasoningGym("prime_factorization").start("train", 0, 0)
    assert task.reply(Message("assistant", "<answer>two</answer>")).reward == 0.0


@given(TASKS)
def test_start_asks_the_same_whatever_the_seed(task: tuple[Split, int]) -> None:
    one = MIXED.start(*task, 0)
    other = ReasoningGym("tower_of_hanoi,leg_counting").start(*task, 1)
    assert (one.task, one.task_type) == (other.task, other.task_type)


@given(TASKS)
def test_splits_have_no_question_in_common(task: tuple[Split, int]) -> None:
    """Nor in tower_of_hanoi, which draws some hundred different ones."""
    assert split_of(MIXED.start(*task, 0).task) == task[0]


def test_data_sets_are_mixed_evenly_by_task_type() -> None:
    kinds = [MIXED.start("train", index, 0).task_type for index in range(10)]
    assert kinds == ["tower_of_hanoi", "leg_counting"] * 5
    assert MIXED.size("held_out") == 2 * SIZES["held_out"]
    with pytest.raises(IndexError):
        MIXED.start("held_out", 2 * SIZES["held_out"], 0)


def test_arguments_reach_the_data_set_that_they_name() -> None:
    few = ["leg_counting.min_animals=1", "leg_counting.max_animals=1"]
    environment = ReasoningGym("gcd,leg_counting", few)
    assert all(environment.start("train", i, 0).task.count(",") < 2 for i in (1, 3, 5))


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("", [], "say which data sets"),
        ("leg_count,gcd,foo", [], r"no data set 'leg_count' \(is leg_counting meant\?\) and no"),
        ("list_functions", [], "draws another question each time"),
        ("ransom_note", [], "other questions in each process"),
        ("gcd,countdown", [], "run_answers: countdown of reasoning-gym runs the policy's answer"),
        ("composite", [], "composite cannot be made: Must specify"),
        ("leg_counting", ["max_animal=3"], r"'max_animal' \(is max_animals meant\?\); it has min"),
        ("leg_counting", ["seed=3"], "has no argument 'seed'"),
        ("leg_counting", ["gcd.max_numbers=3"], "none of the data sets that are played"),
        ("leg_counting", ["min_animals=-3"], "cannot be made: min_animals must be positive"),
        ("leg_counting", ["min_animals"], "not of the form name=value"),
    ],
)
def test_make_names_what_is_wrong(target: str, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReasoningGym(target, arguments)


def test_splits_of_few_questions_have_none_in_common() -> None:
    arguments = [f"{name}=1" for name in ("min_animals", "max_animals", "max_instances")]
    environment = ReasoningGym("leg_counting", [*arguments, "min_instances=1"])
    held_out = {environment.start("held_out", index, 0).task for index in range(50)}
    train = {environment.start("train", index, 0).task for index in range(50)}
    assert held_out and train and not held_out & train


def test_answers_are_run_where_that_is_asked_for() -> None:
    task = ReasoningGym("spiral_matrix", run_answers=True).start("train", 0, 0)
    assert task.reply(Message("assistant", "<answer>[1, 2]</answer>")).reward < 1


def test_registry_finds_the_adapter_and_its_settings_by_a_name_with_data_sets() -> None:
    environment = make_environment("reasoning-gym:leg_counting", arguments=["max_animals=3"])
    assert environment.start("train", 0, 0).task_type == "leg_counting"
    assert settings_of_environment("reasoning-gym:leg_counting") is ReasoningGymSettings
