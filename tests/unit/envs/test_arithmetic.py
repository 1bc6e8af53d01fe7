"""Word problems, and the calculator that works them out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.arithmetic import SIZES, STORIES, Arithmetic, calculate
from envs.base import Split
from envs.conversation import Message, ToolCall
from envs.play import play_expert_episode

ENVIRONMENT = Arithmetic()


@given(st.sampled_from(["train", "held_out"]), st.integers(0, SIZES["held_out"] - 1))
def test_expert_solves_every_problem_in_three_messages(split: Split, index: int) -> None:
    rng = random.Random(0)
    episode = play_expert_episode(ENVIRONMENT, split, index, rng, max_turns=3)
    assert episode.success


def test_problem_text_has_every_number_that_its_steps_need() -> None:
    for index in range(100):
        problem = ENVIRONMENT.start("train", index, 0)
        said = problem.task + " ".join(map(str, problem.results))
        for expression in problem.expressions:
            left, _, right = expression.replace("+", "*").replace("-", "*").partition("*")
            assert left in said and right in said


def test_all_kinds_of_problems_are_drawn() -> None:
    kinds = {ENVIRONMENT.start("train", index, 0).task_type for index in range(200)}
    assert kinds == {story.kind for story in STORIES}


def test_same_problem_is_opened_for_every_seed() -> None:
    one, other = (ENVIRONMENT.start("held_out", 3, seed) for seed in (0, 1))
    assert (one.task, one.results) == (other.task, other.results)


@pytest.mark.parametrize(
    ("text", "success"),
    [("{}", True), ("The answer is {} euros.", True), ("It is {}, not 3.", False), ("none", False)],
)
def test_last_number_of_an_answer_is_the_result(text: str, success: bool) -> None:
    problem = ENVIRONMENT.start("train", 0, 0)
    reply = problem.reply(Message("assistant", text.format(problem.results[-1])))
    assert (reply.done, reply.success, reply.reward) == (True, success, float(success))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"expression": "2*(3-5)"}, "-4"),
        ({"expression": "2*"}, "error: ValueError: 2* is no expression"),
        ({"expression": "2**9999999999"}, "error: ValueError: an expression has integers"),
        ({"expression": "__import__('os')"}, "error: ValueError: an expression has integers"),
        ({"expression": "(" * 60}, "error: ValueError: (("),
        ({"expression": 7}, "error: ValueError: an expression is a string"),
        (
            {"expression": "9" * 61},
            "error: ValueError: an expression is a string of at most 60 characters",
        ),
        ({}, "error: calculate: missing a required argument: 'expression'"),
    ],
)
def test_calculator_answers_any_call(arguments: dict, answer: str) -> None:
    problem = ENVIRONMENT.start("train", 0, 0)
    reply = problem.reply(Message("assistant", tool_calls=(ToolCall("calculate", arguments),)))
    assert not reply.done
    assert reply.messages[0].content.startswith(answer)


def test_call_that_cannot_be_read_ends_the_problem() -> None:
    problem = ENVIRONMENT.start("train", 0, 0)
    reply = problem.reply(Message("assistant", tool_calls=(ToolCall("", error="no JSON"),)))
    assert (reply.done, reply.success, reply.reward) == (True, False, 0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("expression", ["1if 1else 2", "'\\d'", "0x1for 1"])
def test_calculator_refuses_what_python_warns_of(expression: str) -> None:
    with pytest.raises(ValueError, match="an expression has integers"):
        calculate(expression)


@given(st.text(alphabet="0123456789+-*() .e_", max_size=60))
def test_calculator_agrees_with_python_or_refuses(expression: str) -> None:
    try:
        value = calculate(expression)
    except ValueError:
        return
    assert value == eval(expression.strip())
