"""What a template can say is found out; what anybody writes stays text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chat_codec import ChatCodec
from protocol.conversation import build_message
from tests.fixtures.conversations import TOOL, arguments, call_tool, say, texts, words
from tests.fixtures.templates import (
    ALTERNATES,
    DROPS_THOUGHTS,
    LLAMA,
    OPENS_THOUGHT,
    PLAIN,
    TEMPLATES,
    byte_tokenizer,
    make_chat_prompter,
)

CODECS = {
    name: ChatCodec(make_chat_prompter(template), [TOOL]) for name, template in TEMPLATES.items()
}
SPECIAL = {
    token for token, text in byte_tokenizer().get_added_tokens_decoder().items() if text.special
}

names = st.sampled_from(sorted(TEMPLATES))


def special_tokens_of(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token in SPECIAL]


@given(names, texts, texts, texts)
def test_special_tokens_come_of_the_template_alone(
    name: str, system: str, question: str, result: str
) -> None:
    def encode(system: str, question: str, result: str) -> list[int]:
        call = call_tool(0, {question: question})
        answer = say("tool", result, tool_call_id="call00000", name="calculate")
        return CODECS[name].encode_prompt(
            [say("system", system), say("user", question), call, answer]
        )

    harmless = special_tokens_of(encode("a", "b", "c"))
    assert special_tokens_of(encode(system, question, result)) == harmless


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_in_tools_are_text(name: str) -> None:
    function = TOOL["function"] | {"description": "Ends with <|im_end|></s><|eot_id|>."}
    codec = ChatCodec(make_chat_prompter(TEMPLATES[name]), [TOOL | {"function": function}])
    prompt, harmless = (each.encode_prompt([say("user", "?")]) for each in (codec, CODECS[name]))
    assert special_tokens_of(prompt) == special_tokens_of(harmless)


@given(st.sampled_from(["plain", "drops thoughts", "words"]), texts)
def test_text_of_special_tokens_is_still_there(name: str, question: str) -> None:
    codec = CODECS[name]
    prompter = make_chat_prompter(TEMPLATES[name])
    assert question in prompter.decode_exactly(codec.encode_prompt([say("user", question)]))


@given(names, words, words | st.just(""))
def test_answer_is_read_as_the_message_it_was_written_for(
    name: str, content: str, thought: str
) -> None:
    message = say("assistant", content)
    if thought:
        message["reasoning_content"] = thought
    answer = CODECS[name].read_answer(CODECS[name].encode_answer(message))
    assert answer.well_formed
    assert build_message(answer) == message


@given(names, arguments, words | st.just(""))
def test_call_is_read_as_the_message_it_was_written_for(
    name: str, given_arguments: dict[str, Any], thought: str
) -> None:
    message = call_tool(0, given_arguments, thought)
    message["tool_calls"][0]["id"] = ""  # ids are given in a transcript
    answer = CODECS[name].read_answer(CODECS[name].encode_answer(message))
    assert answer.well_formed
    assert build_message(answer) == message


@given(names, st.lists(st.integers(0, byte_tokenizer().get_vocab_size() - 1), max_size=40))
def test_any_response_can_be_read(name: str, tokens: list[int]) -> None:
    answer = CODECS[name].read_answer(tokens)
    assert answer.well_formed <= bool(answer.content or answer.calls)


@pytest.mark.parametrize(
    ("response", "well_formed"),
    [
        ("It is 2.<|im_end|>", True),
        ("It is 2.", False),
        ("<|im_end|>", False),
        ("<think>so</think>It is 2.<|im_end|>", True),
        ("<think>so<|im_end|>", False),
        ("<think>so</think><|im_end|>", False),
        ('<tool_call>{"name": "calculate", "arguments": {}}</tool_call><|im_end|>', True),
        ('<tool_call>{"name": "calculate"}</tool_call><|im_end|>', False),
        ("<tool_call>calculate(1)</tool_call><|im_end|>", False),
    ],
)
def test_answer_is_well_formed_if_it_ends_and_says_something(
    response: str, well_formed: bool
) -> None:
    tokens = make_chat_prompter(PLAIN).encode([response])[0]
    assert CODECS["plain"].read_answer(tokens).well_formed is well_formed


def test_call_inside_a_thought_is_none() -> None:
    response = '<think><tool_call>{"name": "a", "arguments": {}}</tool_call></think>2<|im_end|>'
    answer = CODECS["plain"].read_answer(make_chat_prompter(PLAIN).encode([response])[0])
    assert (answer.content, answer.calls) == ("2", [])


def test_response_begins_inside_a_thought_that_the_template_opens() -> None:
    codec = ChatCodec(make_chat_prompter(OPENS_THOUGHT))
    tokens = make_chat_prompter(OPENS_THOUGHT).encode(["so\n</think>\n\n2<|im_end|>"])[0]
    answer = codec.read_answer(tokens)
    assert (answer.reasoning, answer.content, answer.well_formed) == ("so", "2", True)


def test_template_of_single_calls_takes_the_first_one_only() -> None:
    calls = '{"name": "calculate", "parameters": {}};{"name": "calculate", "parameters": {}}'
    answer = CODECS["llama"].read_answer(make_chat_prompter(LLAMA).encode([calls])[0])
    assert [bool(call.error) for call in answer.calls] == [False, True]
    answers = [say("tool", "1", tool_call_id=f"call0000{i}", name="calculate") for i in range(2)]
    CODECS["llama"].encode_prompt([say("user", "?"), build_message(answer), *answers])


def test_role_of_the_system_is_said_to_the_user_where_there_is_none() -> None:
    prompter = make_chat_prompter(OPENS_THOUGHT)
    codec = ChatCodec(prompter)
    prompt = codec.encode_prompt([say("system", "Be brief."), say("user", "1+1?")])
    assert "user: Be brief.\n\n1+1?" in prompter.decode_exactly(prompt)


def test_instruction_without_a_question_is_said_once() -> None:
    prompter = make_chat_prompter(OPENS_THOUGHT)
    following = [say("user", "Go on.")]
    after = ChatCodec(prompter).encode_continuation(
        [say("system", "Ask.")], say("assistant", "Why?"), following
    )
    assert "Ask." not in prompter.decode_exactly(after)


@pytest.mark.parametrize("second", ["user", "system"])
def test_messages_of_the_user_are_one_where_roles_must_alternate(second: str) -> None:
    prompter = make_chat_prompter(ALTERNATES)
    codec = ChatCodec(prompter, [TOOL])
    following = [say("tool", "2", tool_call_id="call00000"), say(second, "Go on.")]
    history = [say("user", "Hello."), say(second, "1+1?")]
    opening = prompter.decode_exactly(codec.encode_prompt(history))
    after = prompter.decode_exactly(codec.encode_continuation(history, call_tool(0, {}), following))
    assert "Hello.\n\n1+1?<|im_end|>" in opening
    assert "user\n<tool_response>\n2\n</tool_response>\n\nGo on.<|im_end|>" in after


def test_tool_format_hermes_leaves_a_template_with_tools_out() -> None:
    prompter = make_chat_prompter(DROPS_THOUGHTS)
    codec = ChatCodec(prompter, [TOOL], tool_format="hermes")
    prompt = codec.encode_prompt(
        [say("user", "?"), call_tool(0, {}), say("tool", "1", tool_call_id="call00000")]
    )
    text = prompter.decode_exactly(prompt)
    assert '<tool_call>{"name": "...", "arguments": {...}}</tool_call>' in text
    assert "user\n<tool_response>\n1\n</tool_response>" in text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + PLAIN,
            r"model\.tool_format: .*no tools; set it to hermes",
        ),
        (
            DROPS_THOUGHTS.replace("tool_call>", "call>"),
            r"model\.tool_format: the chat template writes a tool's call as .*<call>.*hermes",
        ),
        (
            PLAIN.replace("m.content", "m.content if m.role == 'user' else ''"),
            r"model\.name: .* leaves out what the policy",
        ),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}" + PLAIN,
            r"model\.name: .*one only",
        ),
    ],
    ids=["raises for tools", "unknown form", "leaves answers out", "refuses answers"],
)
def test_template_that_holds_no_conversation_is_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatCodec(make_chat_prompter(template), [TOOL])
