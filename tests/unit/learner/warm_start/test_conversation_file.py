"""Conversations of a file are imitated as played ones are, or refused by their line."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Config, ConfigError
from envs.base import Environment
from envs.conversation import to_chat_messages
from envs.play import ExpertEpisode, play_expert_episode
from learner.data.rows import merge_turns
from learner.data.samples import TrainingSample
from learner.warm_start.conversation_file import read_conversations
from learner.warm_start.demonstrations import TurnTokenizer, tokenize_conversation
from learner.warm_start.policy_cache import policy_digest
from protocol.conversation import build_codec, build_message
from protocol.prompting import Prompter
from protocol.transcripts import TranscriptTree
from tests.fixtures.conversations import TOOL, arguments, words
from tests.fixtures.environments import shared_environment
from tests.fixtures.harnesses import GivenHarness
from tests.fixtures.learner import job_of_tiny, small_config
from tests.fixtures.templates import PLAIN, TEMPLATES, make_chat_prompter
from tests.fixtures.tool_environment import load_prices, prices_with_expert

HELLO = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]

PLAIN_PROMPTER = make_chat_prompter(PLAIN)


def config_of(file: Path) -> Config:
    return small_config(warm_start__data=str(file))


def write_lines(directory: Path, *lines: Any) -> Config:
    """Write a line of each value, texts as they stand; returns settings that name the file."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file = directory / "chats.jsonl"
    file.write_text("\n".join(texts) + "\n")
    return config_of(file)


@cache
def tokenizer_of(prompter: Prompter) -> TurnTokenizer:
    """Make a tokenizer, once for each prompter: it finds out much about a template."""
    return TurnTokenizer(prompter)


def tokenize_file(
    config: Config, environment: Environment, prompter: Prompter
) -> list[TrainingSample]:
    tokenizer = tokenizer_of(prompter)
    return [
        sample
        for conversation in read_conversations(config, environment)
        for sample in tokenize_conversation(conversation, tokenizer, 4096)
    ]


def write_openai(episode: ExpertEpisode) -> dict[str, Any]:
    """Write an episode as OpenAI's API has it: arguments as text, ids of its own, text parts."""
    messages = []
    for before, answer, _ in episode.conversation:
        messages += to_chat_messages([*before, answer])
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["id"] = f"chatcmpl-{call['id']}"
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if "tool_call_id" in message:
            message["tool_call_id"] = f"chatcmpl-{message['tool_call_id']}"
        if message["role"] == "user":
            message["content"] = [{"type": "text", "text": message["content"]}]
        message["content"] = message["content"] or None
    return {"messages": messages, "tools": list(episode.tools)}


def as_lists(samples: Sequence[TrainingSample]) -> list[tuple[list[int], list[int]]]:
    return [(sample.prompt.tolist(), sample.response.tolist()) for sample in samples]


@pytest.mark.parametrize("past_thoughts", ["keep", "template"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_conversation_of_a_file_has_the_tokens_of_the_played_one(
    tmp_path: Path, template: str, past_thoughts: str
) -> None:
    environment = prices_with_expert()
    episode = play_expert_episode(environment, "train", 0, random.Random(0))
    prompter = make_chat_prompter(template, past_thoughts=past_thoughts)
    config = write_lines(tmp_path, write_openai(episode))
    samples = tokenize_file(config, environment, prompter)
    assert as_lists(samples) == as_lists(TurnTokenizer(prompter).tokenize(episode))


@given(st.lists(st.tuples(words, words | arguments), min_size=1, max_size=4))
def test_all_that_the_assistant_says_is_learned_in_one_row(
    said: list[tuple[str, str | dict[str, Any]]],
) -> None:
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(said):
        messages.append({"role": "user", "content": question})
        if isinstance(answer, str):
            messages.append({"role": "assistant", "content": answer})
            continue
        function = {"name": "calculate", "arguments": json.dumps(answer)}
        call = {"id": f"call-{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call-{number}", "content": "2"})
    prompter = PLAIN_PROMPTER
    with tempfile.TemporaryDirectory() as directory:
        config = write_lines(Path(directory), {"messages": messages, "tools": [TOOL]})
        samples = tokenize_file(config, load_prices()(), prompter)
    (row,) = merge_turns(samples)
    assert len(row) == len(said)
    for sample, (question, answer) in zip(row, said, strict=True):
        assert sample.mask.all()
        assert question in prompter.decode_exactly(sample.prompt.tolist())
        if isinstance(answer, str):
            response = prompter.decode_exactly(sample.response.tolist())
            assert response == f"{answer}<|im_end|>"


def test_tools_of_a_line_are_shown_and_else_those_of_the_environment(tmp_path: Path) -> None:
    config = write_lines(
        tmp_path,
        {"messages": HELLO},
        {"messages": HELLO, "tools": [TOOL]},
        {"messages": HELLO, "tools": []},
    )
    prompter = make_chat_prompter(PLAIN)
    samples = tokenize_file(config, load_prices()(), prompter)
    prompts = [prompter.decode_exactly(sample.prompt.tolist()) for sample in samples]
    assert ["price" in prompt for prompt in prompts] == [True, False, False]
    assert ["calculate" in prompt for prompt in prompts] == [False, True, False]


def test_message_of_weight_0_is_in_the_prompt_and_not_learned(tmp_path: Path) -> None:
    messages = [HELLO[0], HELLO[1] | {"weight": 0}, HELLO[0], HELLO[1] | {"weight": 1}]
    config = write_lines(tmp_path, {"messages": messages})
    prompter = make_chat_prompter(PLAIN)
    (sample,) = tokenize_file(config, load_prices()(), prompter)
    assert "hi<|im_end|>" in prompter.decode_exactly(sample.prompt.tolist())


def test_thought_in_the_content_is_the_reasoning_that_a_run_reads(tmp_path: Path) -> None:
    inside = [HELLO[0], {"role": "assistant", "content": "<think>\nso\n</think>\n\nhi"}]
    apart = [HELLO[0], HELLO[1] | {"reasoning_content": "so"}]
    for template in TEMPLATES.values():
        prompter = make_chat_prompter(template)
        config = write_lines(tmp_path, {"messages": inside}, {"messages": apart})
        first, second = as_lists(tokenize_file(config, load_prices()(), prompter))
        assert first == second


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_harness_learns_conversations_as_its_endpoint_tokenizes_them(
    tmp_path: Path, template: str
) -> None:
    messages = [
        *HELLO,
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    config = write_lines(tmp_path, {"messages": messages})
    prompter = make_chat_prompter(template)
    harness = cast(Environment, GivenHarness())
    tree = TranscriptTree(lambda tools: build_codec(prompter, tools))
    for number, sample in enumerate(tokenize_file(config, harness, prompter)):
        branch = tree.open(messages[: 2 * number + 1], [])
        assert branch.prompt == sample.prompt.tolist()
        tree.read(branch, sample.response.tolist(), build_message)


def test_environment_of_single_prompts_learns_exchanges_as_its_turns(tmp_path: Path) -> None:
    response = "<think>four</think>\n<action>4</action>"
    messages = [HELLO[0], {"role": "assistant", "content": response}]
    config = write_lines(tmp_path, {"messages": messages})
    prompter = make_chat_prompter(PLAIN)
    samples = tokenize_file(config, shared_environment("alfworld"), prompter)
    expected = TurnTokenizer(prompter).tokenize_turns([("hello", response)])
    assert as_lists(samples) == as_lists(expected)


@pytest.mark.parametrize(
    "messages", [[*HELLO, *HELLO], [{"role": "system", "content": "Be kind."}, *HELLO]]
)
def test_environment_of_single_prompts_refuses_longer_conversations(
    tmp_path: Path, messages: list[dict[str, Any]]
) -> None:
    config = write_lines(tmp_path, {"messages": HELLO}, {"messages": messages})
    with pytest.raises(ConfigError, match=r"line 2: alfworld asks .* one message of the user"):
        read_conversations(config, shared_environment("alfworld"))


def test_byte_order_mark_before_the_first_line_is_passed_over(tmp_path: Path) -> None:
    config = write_lines(tmp_path, "\ufeff" + json.dumps({"messages": HELLO}))
    assert len(read_conversations(config, load_prices()())) == 1


def calling(function: Any, **others: Any) -> list[dict[str, Any]]:
    call = {"id": "a", "type": "function", "function": function} | others
    return [HELLO[0], {"role": "assistant", "tool_calls": [call]}]


PRICE = {"name": "price", "arguments": '{"fruit": "fig"}'}

BAD_LINES = {
    "hello": "it is no JSON, .*: JSON is malformed",
    '{"messages": [': "it is no JSON",
    '{"messages": [{"role": "user", "content": "\\ud800"}]}': "it is no JSON",
    "[1]": "expected `object`, got `array`; each line has to be",
    '{"prompt": "hello"}': "missing required field `messages`",
    '{"messages": "hello"}': "messages: expected `array`, got `str`",
    '{"messages": []}': "no message of the assistant",
    '{"messages": [{"content": "hello"}]}': r"messages\[0\]: .* missing required field `role`",
}

BAD_MESSAGES = [
    ([HELLO[0], {"role": "bot", "content": "hi"}], r"messages\[1\]\.role: .*'bot'; roles are sys"),
    ([HELLO[0]], "no message of the assistant"),
    ([HELLO[0], HELLO[1] | {"weight": 0}], "weight 0; give one weight 1"),
    ([HELLO[0], HELLO[1] | {"weight": 2}], r"messages\[1\]\.weight: invalid enum value 2"),
    ([HELLO[1]], r"messages\[0\]: the assistant speaks without"),
    ([*HELLO, HELLO[1]], r"messages\[2\]: the assistant speaks without"),
    ([HELLO[0], {"role": "assistant", "content": " "}], r"messages\[1\]: .* says nothing"),
    ([HELLO[0], {"role": "assistant", "content": "<think>a</think>"}], "says nothing"),
    ([{"role": "user", "content": 3}, HELLO[1]], r"messages\[0\]\.content: expected `str \| ar"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, HELLO[1]],
        r"messages\[0\]\.content\[0\]\.type: invalid value 'image_url'; a content's parts are te",
    ),
    (calling({"name": "price"}), r"tool_calls\[0\]\.function: .* field `arguments`"),
    (calling(PRICE | {"arguments": "fig"}), r"\[1\]\.tool_calls\[0\].*: 'fig' is no JSON object"),
    (calling(PRICE | {"arguments": ""}), "'' is no JSON object"),
    (calling(PRICE | {"arguments": "[1]"}), "is no JSON object"),
    (calling(PRICE | {"name": "cost"}), "there is no tool 'cost', but price"),
    (calling(PRICE, type="custom"), "invalid enum value 'custom'"),
    (
        [*calling(PRICE), {"role": "tool", "tool_call_id": "b", "content": "3"}, *HELLO],
        r"messages\[2\]\.tool_call_id is 'b', and the policy's calls have a",
    ),
    ([{"role": "tool", "content": "3"}, HELLO[1]], "it called no tool"),
    ([HELLO[0] | {"tool_calls": calling(PRICE)[1]["tool_calls"]}, HELLO[1]], "only the assistant"),
    ([HELLO[0], {"role": "assistant", "tool_calls": 2 * calling(PRICE)[1]["tool_calls"]}], "an id"),
]


@pytest.mark.parametrize(
    ("line", "message"),
    [*BAD_LINES.items(), *(({"messages": bad}, words) for bad, words in BAD_MESSAGES)],
)
def test_bad_line_is_refused_by_file_line_and_place(
    tmp_path: Path, line: Any, message: str
) -> None:
    config = write_lines(tmp_path, {"messages": HELLO}, "", line)
    with pytest.raises(
        ConfigError, match=rf"^warm_start\.data: .*/chats\.jsonl, line 3: .*{message}"
    ):
        read_conversations(config, load_prices()())


def test_tools_of_a_line_that_are_none_are_refused(tmp_path: Path) -> None:
    config = write_lines(tmp_path, {"messages": HELLO, "tools": [{"type": "function"}]})
    with pytest.raises(ConfigError, match=r"line 1: tools\[0\]: "):
        read_conversations(config, load_prices()())


@pytest.mark.parametrize(
    ("content", "message"), [("\n \n", "is empty"), (None, "there is no file")]
)
def test_file_without_conversations_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "chats.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=rf"^warm_start\.data: .*{message}"):
        read_conversations(config_of(file), load_prices()())


def test_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_conversations(config_of(tmp_path), load_prices()())


def test_conversation_longer_than_the_context_is_refused_by_its_line(tmp_path: Path) -> None:
    config = write_lines(tmp_path, {"messages": HELLO})
    (conversation,) = read_conversations(config, load_prices()())
    tokenizer = TurnTokenizer(make_chat_prompter(PLAIN))
    (sample,) = tokenize_conversation(conversation, tokenizer, 4096)
    assert tokenize_conversation(conversation, tokenizer, sample.length)
    with pytest.raises(
        ConfigError,
        match=rf"line 1: its {sample.length} tokens are more than engine\.max_model_len",
    ):
        tokenize_conversation(conversation, tokenizer, sample.length - 1)


def test_what_a_template_cannot_hold_is_refused_by_its_line(tmp_path: Path) -> None:
    calls = [
        {"id": name, "type": "function", "function": PRICE | {"arguments": {"fruit": name}}}
        for name in ("fig", "plum")
    ]
    messages = [HELLO[0], {"role": "assistant", "tool_calls": calls}]
    config = write_lines(tmp_path, {"messages": messages})
    with pytest.raises(ConfigError, match=r"line 1: in the model's form, .* make one call at a"):
        tokenize_file(config, load_prices()(), make_chat_prompter(TEMPLATES["llama"]))


def test_policy_digest_follows_what_stands_in_the_file(tmp_path: Path) -> None:
    """A warm start is not reused for other conversations, and is where only the file moved."""
    job = job_of_tiny(tmp_path / "run", small_config())
    digests = []
    for directory, content in (("a", "hi"), ("b", "hi"), ("b", "ho")):
        (tmp_path / directory).mkdir(exist_ok=True)
        line = {"messages": [HELLO[0], {"role": "assistant", "content": content}]}
        config = write_lines(tmp_path / directory, line)
        digests.append(policy_digest(config, Path(job.model_dir)))
    assert digests[0] == digests[1] != digests[2]
    assert policy_digest(small_config(), Path(job.model_dir)) not in digests
