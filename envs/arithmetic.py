"""Word problems of two steps, to be worked out with a calculator as a tool.

A conversation of three messages of tens of tokens, short enough for a small language model on a
laptop (recipes/smollm2-tools.toml). The numbers are too large for such a model to work out in its
head: it has to choose what to calculate, and in which order.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from envs.base import Split
from envs.conversation import Message, Reply, ToolCall, answer_calls

CALCULATE = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Work out 12*3 or 7+5.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}

MAX_TURNS = 5
"""Messages of the policy after which a problem is cut off; three suffice."""

SIZES = {"train": 100_000, "held_out": 1_000}

_NAMES = ("Mia", "Tom", "Eva", "Ben", "Ida", "Max", "Zoe", "Leo")
_THINGS = ("pens", "cards", "shells", "apples", "books", "coins", "stamps", "balls")


class Story(NamedTuple):
    """A kind of word problem."""

    kind: str
    text: str
    """The problem, with `{name}`, `{thing}` and the numbers `{a}` to `{c}`."""
    steps: tuple[str, str]
    """What to calculate first, and then with its result `{0}`."""


STORIES = (
    Story(
        "boxes",
        "{name} has {a} boxes of {b} {thing} and finds {c} more. How many {thing} are there?",
        ("{a}*{b}", "{0}+{c}"),
    ),
    Story(
        "gift",
        "{name} has {a} {thing}, gets {b} and gives {c} away. How many {thing} are left?",
        ("{a}+{b}", "{0}-{c}"),
    ),
    Story(
        "team",
        "{a} girls and {b} boys bring {c} {thing} each. How many {thing} are there?",
        ("{a}+{b}", "{0}*{c}"),
    ),
    Story(
        "savings",
        "{name} earns {a} euros a day and spends {b}. How many euros are saved in {c} days?",
        ("{a}-{b}", "{0}*{c}"),
    ),
    Story(
        "sale",
        "{name} has {a} bags of {b} {thing} and gives {c} away. How many {thing} are left?",
        ("{a}*{b}", "{0}-{c}"),
    ),
)


class Problem:
    """One word problem: a `Conversation`, which a message without a call ends."""

    scores: Mapping[str, float] = {}

    def __init__(self, story: Story, numbers: Mapping[str, int], words: Mapping[str, str]) -> None:
        self.task_type = story.kind
        self.task = story.text.format(**numbers, **words)
        self.messages = [Message("system", "Use the tool."), Message("user", self.task)]
        self.expressions, self.results = work_out(story, numbers)

    def reply(self, message: Message) -> Reply:
        """Answer calls of the calculator; a message without one is the policy's answer.

        One with a call that cannot be read ends the problem, unsolved: a policy that repairs its
        calls later would be rewarded for both.
        """
        if any(call.error for call in message.tool_calls):
            return Reply(done=True)
        if message.tool_calls:
            return Reply(answer_calls(message, {"calculate": calculate}))
        numbers = re.findall(r"-?\d+", message.content)
        solved = numbers[-1:] == [str(self.results[-1])]
        return Reply(reward=float(solved), done=True, success=solved)


class Arithmetic:
    """Word problems; a `ConversationEnvironment`."""

    name = "arithmetic"
    tools = (CALCULATE,)

    def __init__(self, max_turns: int = MAX_TURNS) -> None:
        self.max_turns = max_turns

    def size(self, split: Split) -> int:
        """Number of problems of a split."""
        return SIZES[split]

    def start(self, split: Split, index: int, seed: int) -> Problem:
        """Open a problem; nothing in it is drawn while it is played."""
        del seed
        rng = random.Random(f"arithmetic {split} {index}")
        story = rng.choice(STORIES)
        words = {"name": rng.choice(_NAMES), "thing": rng.choice(_THINGS)}
        return Problem(story, draw_numbers(story, rng), words)

    def expert(self, episode: Problem, rng: random.Random) -> Solver:
        """Return who works out a problem, one step a message."""
        return Solver(episode, rng)


@dataclass
class Solver:
    """The expert, which calculates each step, then says the last result."""

    problem: Problem
    rng: random.Random

    def act(self, messages: Sequence[Message]) -> Message:
        """Calculate the first step whose result nobody has said yet, or say the answer."""
        said = {message.content for message in messages if message.role == "tool"}
        for expression, result in zip(self.problem.expressions, self.problem.results, strict=True):
            if str(result) not in said:
                return _call(expression)
        return Message("assistant", str(self.problem.results[-1]))

    def waste_turn(self, messages: Sequence[Message]) -> Message:
        """Calculate something that the problem does not need."""
        del messages
        return _call(f"{self.rng.randint(1, 9)}+{self.rng.randint(1, 9)}")


def draw_numbers(story: Story, rng: random.Random) -> dict[str, int]:
    """Draw the numbers of a problem: no result of a step is negative or 0."""
    while True:
        numbers = {letter: rng.randint(3, 60) for letter in "abc"}
        numbers[rng.choice("abc")] = rng.randint(60, 999)
        if all(0 < result < 20_000 for result in work_out(story, numbers)[1]):
            return numbers


def work_out(story: Story, numbers: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Return the expression of each step of a problem, and its result."""
    expressions: list[str] = []
    results: list[int] = []
    for step in story.steps:
        expressions.append(step.format(*results, **numbers))
        results.append(calculate(expressions[-1]))
    return expressions, results


_EXPRESSION = re.compile(r"[0-9+*() -]*")
"""All that may stand in an expression: Python warns of some other things while it reads them."""

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}

_FORM = "an expression has integers, +, -, * and parentheses"

_MAX_LENGTH = 60
"""Characters of an expression: its value has no more digits."""


def calculate(expression: str) -> int:
    """Work out an expression of integers, `+`, `-`, `*` and parentheses.

    Raises ValueError for anything else.
    """
    if not isinstance(expression, str) or len(expression) > _MAX_LENGTH:
        raise ValueError(f"an expression is a string of at most {_MAX_LENGTH} characters")
    if not _EXPRESSION.fullmatch(expression):
        raise ValueError(_FORM)
    try:
        return _value_of(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"{expression} is no expression") from None


def _value_of(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value_of(node.left), _value_of(node.right))
    raise ValueError(_FORM)


def _call(expression: str) -> Message:
    return Message("assistant", tool_calls=(ToolCall("calculate", {"expression": expression}),))
