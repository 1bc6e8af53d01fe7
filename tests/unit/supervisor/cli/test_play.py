"""`run.py play`: a person, the expert and a checkpoint at the terminal."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from actors.conversation_stage import ConversationStage
from config import Config, ConfigError
from config.resolve import resolve, to_toml
from envs.base import EnvironmentFailure
from envs.conversation import Message
from envs.registry import make_environment
from protocol.chat_codec import ChatCodec
from supervisor.cli.check import CharacterPrompter
from supervisor.cli.play import play, resolve_played
from supervisor.cli.play_conversation import describe_overflow, read_line
from tests.fixtures.harnesses import harness_code
from tests.fixtures.runs import small_config
from tests.fixtures.tool_environment import load_prices, tool_code


def full_config(**overrides: str) -> Config:
    """SMALL with overrides, in as many turns as the environment itself allows."""
    return small_config(**{"env__max_turns": "0"} | overrides)


CONFIG = full_config()


def watched(config: Config = CONFIG, task: int = 5, watch: str = "") -> tuple[bool, str]:
    """Play one task; return whether it was solved, and what was printed."""
    output = io.StringIO()
    solved = play(config, "held_out", task, watch, Console(file=output, width=200))
    return solved, output.getvalue()


def typing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_expert_solves_the_task_and_says_what_it_thinks():
    solved, output = watched(watch="expert")
    assert (
        solved
        and "solved: reward 10" in output
        and make_environment("alfworld").start("held_out", 5).task in output
    )


def test_a_checkpoint_plays_until_its_turns_are_used_up(small_policy: Path):
    solved, output = watched(full_config(env__max_turns="2"), watch=str(small_policy))
    assert (
        not solved
        and output.count("invalid") == 2
        and "not solved: reward 0 after 2 turns" in output
    )


def test_resolve_played_takes_the_settings_of_the_run_that_is_watched(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "000001"
    checkpoint.mkdir(parents=True)
    (tmp_path / "prices.py").write_text(tool_code())
    name = str(tmp_path / "prices.py")
    config = small_config(env__name=name, model__system_prompt="Be brief.")
    (tmp_path / "config.toml").write_text(to_toml(config))
    played = resolve_played(str(checkpoint), {"sampling.max_tokens": "7"})
    assert (played.env.name, played.model.system_prompt) == (name, "Be brief.")
    assert played.sampling.max_tokens == 7
    assert resolve_played("expert", {}).env.name == "alfworld"
    assert resolve_played("", {}, tmp_path / "config.toml").env.name == name
    with pytest.raises(ConfigError, match="leave --config out"):
        resolve_played(str(checkpoint), {}, tmp_path / "config.toml")


def test_a_number_chooses_a_listed_action(monkeypatch: pytest.MonkeyPatch):
    first = make_environment("alfworld").start("held_out", 5).observation.admissible[0]
    typing(monkeypatch, "1", "q")
    assert f"> {first}\n" in watched()[1]


def test_a_response_in_the_form_that_an_agent_is_asked_for_is_read_as_one(
    monkeypatch: pytest.MonkeyPatch,
):
    typing(
        monkeypatch,
        "<think>What have I?</think><action>Inventory</action>",
        "<think>x</think><action>fly</action>",
        "q",
    )
    _, output = watched()
    assert "> inventory\n" in output and "> fly  invalid" in output


def test_an_action_whose_name_is_a_number_is_that_of_its_name(monkeypatch: pytest.MonkeyPatch):
    typing(monkeypatch, "1", "7", "q")
    _, output = watched(full_config(env__name="gymnasium", env__settings__id="CartPole-v1"), task=0)
    assert output.count("\n> ") == 1 and "\n> 1\n" in output


def test_a_tagged_search_is_made_as_an_agent_would_make_it(monkeypatch: pytest.MonkeyPatch):
    typing(monkeypatch, "<think>x</think> <search> capital of Bhutan </search>", "q")
    assert "Doc 1: " in watched(full_config(env__name="search"))[1]


def test_text_is_an_action_and_an_empty_line_or_a_wrong_number_is_not(
    monkeypatch: pytest.MonkeyPatch,
):
    typing(monkeypatch, "", "999", "inventory", "q")
    _, output = watched()
    assert output.count("\n> ") == 1 and "> inventory\n" in output


def test_brackets_in_a_question_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    rows = [
        {"question": f"Who is [/i] number {number}?", "answers": "me", "source": "[a]"}
        for number in range(2)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    typing(monkeypatch, "q")
    _, output = watched(
        full_config(env__name="search", env__settings__questions=str(tmp_path / "questions.jsonl")),
        task=0,
    )
    assert "Who is [/i] number" in output and "[a], held_out task 0" in output


def test_an_environment_that_fails_in_a_turn_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    def failing(self, action):
        raise EnvironmentFailure("the retriever is gone")

    monkeypatch.setattr("envs.alfworld.environment.AlfWorldEpisode.step", failing)
    typing(monkeypatch, "1")
    with pytest.raises(ConfigError, match="alfworld: the retriever is gone"):
        watched()


def test_the_end_of_the_input_ends_the_episode(monkeypatch: pytest.MonkeyPatch):
    typing(monkeypatch)
    assert watched()[0] is False


def test_a_task_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="held_out has tasks 0 to 1023, not 5000"):
        watched(task=5000)


def test_an_expert_where_there_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"^env\.name: textarena has no expert"):
        watched(full_config(env__name="textarena"), task=0, watch="expert")


def test_a_directory_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="--watch"):
        watched(watch=str(tmp_path))


def test_expert_that_says_no_message_is_an_error_that_says_so(tmp_path: Path) -> None:
    code = tool_code() + "\n    def expert(self, episode, rng):\n        return Wordy()\n"
    code += "\n\nclass Wordy:\n    def act(self, messages):\n        return 'Hello.'\n"
    (tmp_path / "prices.py").write_text(code)
    config = small_config(env__name=str(tmp_path / "prices.py"))
    with pytest.raises(ConfigError, match="the expert's message, where a Message belongs"):
        watched(config, watch="expert")


@pytest.mark.parametrize("limit", [0, 10])
def test_describe_overflow_gives_the_tokens_and_the_option(limit: int) -> None:
    environment = load_prices()()
    codec = ChatCodec(CharacterPrompter(), environment.tools)
    stage = ConversationStage(environment, codec, limit)
    assert stage.start("train", 0, 0).prompt is None
    said = describe_overflow(resolve(None, {}), stage)
    assert ("far more than 1,024 tokens" in said) == (limit == 0)
    assert re.search(r"context of 1,024; raise it: --engine\.max_model_len 2048$", said)


def test_read_line_takes_what_is_no_json_as_words() -> None:
    assert read_line('price {"fruit": NaN}') == Message("assistant", 'price {"fruit": NaN}')


def test_without_a_list_of_actions_the_player_is_told_their_form(monkeypatch: pytest.MonkeyPatch):
    typing(monkeypatch, "<search>capital of Bhutan</search>", "q")
    _, output = watched(full_config(env__name="search"))
    assert "<answer>" in output and "capital of Bhutan" in output and "Doc 1: " in output


def test_person_calls_a_tool_of_a_conversation_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prices.py"
    file.write_text(tool_code())
    typing(monkeypatch, 'price {"fruit": "fig"}', "no idea")
    solved, output = watched(full_config(env__name=str(file)))
    assert not solved
    assert "assistant: price(fruit='fig')\ntool: " in output
    assert "not solved: reward 0 after 2 turns" in output


def test_person_answers_the_requests_of_a_harness(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sums.py").write_text(harness_code())
    config = full_config(env__name=str(tmp_path / "sums.py"))
    first, second = make_environment(config.env.name).task("held_out", 5)
    typing(monkeypatch, "none", str(first + second))
    solved, output = watched(config)
    assert solved
    assert output.count("user: What is") == 1
    assert output.index("That is wrong") < output.index("solved: reward 1 after 2 turns")


def test_model_answers_the_requests_of_a_harness(tmp_path: Path, small_policy: Path) -> None:
    (tmp_path / "sums.py").write_text(harness_code())
    config = full_config(env__name=str(tmp_path / "sums.py"), engine__max_model_len="2048")
    solved, output = watched(config, watch=str(small_policy))
    assert not solved
    assert "not solved: reward 0 after 3 turns" in output


def test_expert_of_a_harness_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(harness_code())
    with pytest.raises(ConfigError, match="sums is a harness, which has no expert"):
        watched(full_config(env__name=str(tmp_path / "sums.py")), watch="expert")
