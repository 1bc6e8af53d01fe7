"""`run.py check`: what is wrong with an environment of one's own is found and said."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from config import ConfigError
from supervisor.cli.check import main
from supervisor.cli.check_tools import sample_arguments
from tests.fixtures.example_environment import guide_code
from tests.fixtures.harnesses import harness_code
from tests.fixtures.tool_environment import expert_code, tool_code


@pytest.fixture(autouse=True)
def _search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def checked(
    directory: Path,
    code: str,
    capsys: pytest.CaptureFixture[str],
    tasks: int = 8,
    options: tuple[str, ...] = (),
    name: str = "",
) -> tuple[int, str]:
    """Exit status and output of a check of the environment in `code`."""
    file = directory / "game.py"
    file.write_text(code)
    status = main(["--env", f"{file}{name}", "--tasks", str(tasks), *options])
    return status, capsys.readouterr().out


@pytest.mark.slow
def test_check_of_the_guides_environment_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment of the guide is sound, and its expert's share is said with an interval."""
    status, output = checked(tmp_path, guide_code(), capsys)
    assert (status, output.splitlines()[-1]) == (0, "nothing is wrong with it")
    assert "game: 10,000 tasks to train on, 200 held out; at most 4 turns" in output
    assert re.search(r"expert: won 16 of 16 \(\d+ to 100 %\), in [\d.]+ turns on average", output)
    assert re.search(r"demonstrations: won 8 of 8 .*wasted_turn_rate 0\)", output)


SOUND_START = 'random.Random(f"{split} {index}").randint(1, 15)'
FLAWED = {
    "random": (SOUND_START, "random.randint(1, 10**9)", "something else the second time"),
    "seed": (
        f"return Game({SOUND_START}, self.max_turns)",
        'game = Game(7, self.max_turns)\n        game.task += f" of {seed}"\n        return game',
        "another task for another seed",
    ),
    "hash": (SOUND_START, "hash(split)", "another task in another process"),
    "lonely": (
        "import random\n",
        "import random\nfrom multiprocessing import parent_process as p\nassert not p(), 'alone'\n",
        "in another process: .*AssertionError: alone",
    ),
    "endless": ("done = won or self.turns == 0", "done = won", "goes on after max_turns"),
    "reward": ("10.0 * won", "None", "gave None as reward"),
    "raises": ("self.turns -= 1", "self.turns -= one", r"NameError: .*game.py:\d+ in step"),
    "exits": ("self.turns -= 1", "raise SystemExit(2)", r"SystemExit: 2 .*game.py:\d+ in step"),
    "surrogate": ('"Say a number."', '"\\udce9"', "as prompt.., which UTF-8 cannot say"),
    "thread": (
        "self.max_turns, self.history = max_turns, history",
        "self.max_turns, self.history = max_turns, history\n"
        "        import sqlite3\n"
        "        self.database = sqlite3.connect(':memory:')",
        "ProgrammingError: SQLite objects created in a thread",
    ),
    "lenient": (
        "return parse_think_action(response)",
        "return ParsedAction(response, True)",
        "parse.. calls .* a valid response",
    ),
    "form": (
        "return format_think_action(thought, action)",
        "return action",
        "parse.. does not call valid what format_response",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("flaw", FLAWED)
def test_check_of_a_flawed_environment_names_what_is_wrong(
    flaw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake that would spoil a run is found by playing a few tasks."""
    right, wrong, message = FLAWED[flaw]
    code = guide_code()
    assert right in code
    code = code.replace(right, wrong)
    if flaw == "thread":
        code = code.replace("past = ", "self.database.execute('select 1')\n        past = ")
    if flaw in ("random", "hash"):  # their tasks differ in what the agent is told
        code = code.replace('"Say a number."', 'f"Say a number up to {number}."')
    status, output = checked(tmp_path, code, capsys, tasks=3)
    assert status == 1
    assert re.search(f"^wrong: .*{message}.* [(]task 0 of ", output, re.MULTILINE), output
    assert "expert: none" not in output


def test_check_of_a_slow_environment_names_the_setting_to_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A turn that would be an error in a run is one here."""
    options = ("--actor.step_timeout", "1e-9")
    status, output = checked(tmp_path, guide_code(), capsys, 2, options)
    assert status == 1
    assert re.search("^wrong: a turn, or a start, took .*actor.step_timeout", output, re.MULTILINE)


@pytest.mark.slow
def test_check_of_an_environment_without_an_expert_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment needs no expert."""
    code = guide_code().replace("def expert(", "def nobody(")
    status, output = checked(tmp_path, code, capsys, tasks=2)
    assert status == 0
    assert "expert: none" in output


def test_check_of_the_guides_conversation_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tool_code() + expert_code()
    status, output = checked(tmp_path, code, capsys, name=":PricesWithExpert")
    assert (status, output.splitlines()[-1]) == (0, "nothing is wrong with it")
    assert "expert: won 16 of 16 " in output


@pytest.mark.parametrize(
    ("sound", "wrong", "flaw"),
    [
        ("return Reply(answer_calls(", "return Reply(() and (", "gave no messages as reply()."),
        ("return Reply(answer_calls(", "return (answer_calls(", "as reply(); return a Reply: "),
        ("def reply(", "def replay(", "Purchase, which has no reply; is replay meant to be reply?"),
    ],
)
def test_check_says_what_a_conversation_replies_that_cannot_be_said(
    sound: str, wrong: str, flaw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tool_code().replace(sound, wrong)
    status, output = checked(tmp_path, code, capsys, tasks=2)
    assert status == 1
    assert flaw in output


def test_check_warns_of_a_tool_with_a_mistake_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answer would go to the policy, turn by turn, and no episode would be dropped."""
    code = tool_code().replace("return self.prices[fruit]", "return self.price_of[fruit]")
    status, output = checked(tmp_path, code, capsys, tasks=1)
    assert (status, "nothing is wrong" in output) == (0, False)
    (warning,) = re.findall("warning: .*", output)
    assert "the tool price(fruit='text') answers \"error: AttributeError: " in warning


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["a", "b"]}, "a"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": ["number", "null"]}, 1),
        ({"type": "array", "minItems": 2, "items": {"type": "boolean"}}, [True, True]),
        ({"type": "object", "properties": {"y": True}}, {"y": "text"}),
        ({"type": "string", "default": "z"}, "z"),
    ],
)
def test_sample_arguments_are_of_the_schema(schema: dict[str, Any], value: object) -> None:
    assert sample_arguments({"type": "object", "properties": {"x": schema}}) == {"x": value}


def test_tools_that_are_none_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tool_code().replace('"type": "object"', '"type": "string"')
    with pytest.raises(ConfigError, match=r"tools\[0\]: its parameters are no JSON schema"):
        checked(tmp_path, code, capsys)


@pytest.mark.slow
def test_check_of_the_guides_harness_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = checked(tmp_path, harness_code(), capsys, tasks=2)
    assert (status, output.splitlines()[-1]) == (0, "nothing is wrong with it")
    assert "at most 30 turns" in output


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('random.Random(f"{split} {index}")', "random.Random()", "something else the second time"),
        ("return 0.0", "return None", "the harness gave no reward"),
        ("first, second = task", "first, second, third = task", r"ValueError: .*game.py:\d+ in"),
    ],
    ids=["random", "reward", "raises"],
)
def test_check_of_a_flawed_harness_names_what_is_wrong(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    right: str,
    wrong: str,
    message: str,
) -> None:
    code = harness_code()
    assert right in code
    status, output = checked(tmp_path, code.replace(right, wrong), capsys, tasks=1)
    assert status == 1
    assert re.search(f"^wrong: .*{message}.* [(]task 0 of ", output, re.MULTILINE), output
