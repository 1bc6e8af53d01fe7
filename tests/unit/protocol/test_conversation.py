"""The next prompt is the last one, what was sampled, and nothing of it tokenized again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chat_codec import ChatCodec
from protocol.conversation import Transcript
from tests.fixtures.conversations import (
    TOOL,
    answer_tool,
    arguments,
    call_tool,
    say,
    texts,
    words,
)
from tests.fixtures.templates import TEMPLATES, byte_tokenizer, make_chat_prompter

PROMPTERS = {name: make_chat_prompter(template) for name, template in TEMPLATES.items()}
CODECS = {
    (name, past_thoughts): ChatCodec(prompter, [TOOL], past_thoughts=past_thoughts)
    for name, prompter in PROMPTERS.items()
    for past_thoughts in ("keep", "template")
}

names = st.sampled_from(sorted(TEMPLATES))
openings = st.one_of(
    st.tuples(texts.map(lambda text: say("user", text))),
    st.tuples(texts.map(lambda text: say("system", text)), texts.map(lambda t: say("user", t))),
)
any_tokens = st.lists(st.integers(0, byte_tokenizer().get_vocab_size() - 1), max_size=30)
spoken_tokens = texts.map(lambda text: PROMPTERS["plain"].encode([text])[0])


def follow(answer: Any, content: str) -> list[dict[str, Any]]:
    """What an environment says after an answer: a result for each call, or something else."""
    calls = answer.get("tool_calls", [])
    results = [say("tool", content, tool_call_id=call["id"], name="calculate") for call in calls]
    return results or [say("user", content)]


@given(names, openings, st.lists(st.tuples(any_tokens | spoken_tokens, texts), max_size=4))
def test_next_prompt_begins_with_the_last_prompt_and_sample(
    name: str, opening: tuple[dict, ...], turns: list[tuple[list[int], str]]
) -> None:
    transcript = Transcript(CODECS[name, "keep"])
    prompt = transcript.open(opening)
    for sampled, content in turns:
        _, message = transcript.read(sampled)
        following = transcript.extend(follow(message, content))
        assert following[: len(prompt) + len(sampled)] == prompt + sampled
        prompt = following
    assert transcript.breaks == 0


@given(names, openings, any_tokens, texts)
def test_turn_that_was_cut_is_ended_before_others_speak(
    name: str, opening: tuple[dict, ...], sampled: list[int], content: str
) -> None:
    codec = CODECS[name, "keep"]
    end = PROMPTERS[name].encode([codec.turn_end])[0]
    transcript = Transcript(codec)
    before = transcript.open(opening) + sampled
    _, message = transcript.read(sampled)
    after = transcript.extend(follow(message, content))[len(before) :]
    if sampled[-1:] != end:
        assert after[: len(end)] == end
    else:
        assert after[: len(end)] != end or not end


@st.composite
def conversations(draw: st.DrawFn, thoughts: st.SearchStrategy[str]) -> list[dict[str, Any]]:
    """Draw a conversation in turns, whose messages of the policy are its own words."""
    messages = list(draw(openings))
    calls = 0
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            messages.append(call_tool(calls, draw(arguments), draw(thoughts)))
            messages.append(answer_tool(calls, draw(texts)))
            calls += 1
        else:
            answer = say("assistant", draw(words))
            thought = draw(thoughts)
            if thought:
                answer["reasoning_content"] = thought
            messages += [answer, say("user", draw(texts))]
    return messages


def play(transcript: Transcript, codec: ChatCodec, messages: list[dict[str, Any]]) -> list[int]:
    """Play a conversation as a policy whose words are those of `messages`; its last prompt."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    stops = [*turns, len(messages)]
    prompt = transcript.open(messages[: stops[0]])
    for i, stop in zip(turns, stops[1:], strict=True):
        transcript.read(codec.encode_answer(messages[i]))
        prompt = transcript.extend(messages[i + 1 : stop])
    return prompt


@given(st.sampled_from(["plain", "llama", "words"]), conversations(st.just("")))
def test_canonical_answers_make_the_prompt_that_the_template_renders(
    name: str, messages: list[dict[str, Any]]
) -> None:
    codec = CODECS[name, "template"]
    transcript = Transcript(codec)
    assert play(transcript, codec, messages) == codec.encode_prompt(messages)
    assert transcript.breaks == 0


@given(names, conversations(words | st.just("")))
def test_rewritten_past_begins_anew_and_another_goes_on(
    name: str, messages: list[dict[str, Any]]
) -> None:
    codec = CODECS[name, "template"]
    transcript = Transcript(codec)
    prompt = transcript.open(messages[:1])
    past = messages[:1]
    for message in messages[1:]:
        if message["role"] != "assistant":
            continue
        sampled = codec.encode_answer(message)
        _, answer = transcript.read(sampled)
        new = follow(answer, "so")
        breaks = transcript.breaks
        following = transcript.extend(new)
        if transcript.breaks > breaks:
            assert following == codec.encode_prompt([*past, answer, *new])
        else:
            assert following[: len(prompt) + len(sampled)] == prompt + sampled
        past = [*past, answer, *new]
        prompt = following


@pytest.mark.parametrize("name", ["plain", "opens a thought", "llama", "mistral", "words"])
def test_template_without_thoughts_breaks_after_each_one(name: str) -> None:
    codec = CODECS[name, "template"]
    transcript = Transcript(codec)
    messages = [say("user", "?"), call_tool(0, {"expression": "1"}, "why"), answer_tool(0, "1")]
    prompt = play(transcript, codec, messages)
    assert transcript.breaks == 1
    assert "why" not in PROMPTERS[name].decode_exactly(prompt)


def test_thoughts_stay_between_calls_and_go_with_the_next_question() -> None:
    codec = CODECS["drops thoughts", "template"]
    transcript = Transcript(codec)
    messages = [
        say("user", "?"),
        call_tool(0, {"expression": "1"}, "first"),
        answer_tool(0, "1"),
        say("assistant", "One.", reasoning_content="second"),
    ]
    prompt = play(transcript, codec, messages[:3])
    assert transcript.breaks == 0
    assert "first" in PROMPTERS["drops thoughts"].decode_exactly(prompt)
    transcript.read(codec.encode_answer(messages[3]))
    text = PROMPTERS["drops thoughts"].decode_exactly(transcript.extend([say("user", "and?")]))
    assert transcript.breaks == 1
    assert "first" not in text
    assert "second" not in text


def test_kept_thoughts_stay_after_the_next_question() -> None:
    codec = CODECS["drops thoughts", "keep"]
    transcript = Transcript(codec)
    messages = [
        say("user", "?"),
        say("assistant", "One.", reasoning_content="why"),
        say("user", "and?"),
    ]
    text = PROMPTERS["drops thoughts"].decode_exactly(play(transcript, codec, messages))
    assert text == (
        "<|im_start|>system\nTools:\n" + text.split("Tools:\n")[1].split("<|im_end|>")[0] + ""
        "<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\nwhy\n</think>\n\nOne.<|im_end|>\n"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    )
