"""Conversations in the form of a model's chat template, to tokens and back.

How the template ends turns, shows tools and writes calls is found out by rendering probes. Parts of
a rendering are found by marks, which stand where the policy's words would: so nothing depends on
how the template would write these words again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from protocol.chat_format import PastThoughts, ToolFormat
from protocol.chat_messages import (
    ChatMessage,
    add_system_prompt,
    build_function_call,
    fold_system,
    join_users,
    say_tools,
)
from protocol.chat_template import THOUGHT_BEGIN, THOUGHT_END
from protocol.tool_calls import (
    CALL_END,
    CALL_START,
    PARSERS,
    ParseCalls,
    ParsedCall,
    parse_hermes,
)

_TAGS = (THOUGHT_BEGIN, THOUGHT_END, CALL_START, CALL_END)
"""Texts that are special tokens of some models, and never the end of a turn."""

_PROBE = [{"role": "user", "content": "question"}]


class ChatRenderer(Protocol):
    """A chat template and a tokenizer, as `Prompter` has them."""

    @property
    def opens_thought(self) -> bool:
        """True if a response begins inside a thought, which its prompt has opened."""
        ...

    def find_turn_end(self) -> str:
        """Return the text that follows an answer; ValueError of a template that renders none."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render a conversation; ValueError with the reason of a template that refuses it."""
        ...

    def special_tokens(self) -> dict[int, str]:
        """Texts of the special tokens, by id."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as they stand, special tokens included."""
        ...

    def decode_exactly(self, tokens: Sequence[int]) -> str:
        """Decode tokens, special ones included."""
        ...


class Marks(NamedTuple):
    """Words that stand in no message, by which places in a rendering are found."""

    inside: str
    """Stands inside the text of a special token, which so is none."""
    end: str
    """Stands for the policy's words."""
    thought: str
    """Stands for a thought."""


class Answer(NamedTuple):
    """A response of the policy, read."""

    content: str
    reasoning: str
    calls: list[ParsedCall]
    well_formed: bool
    """It came to its end, its thought is closed, and it says something or calls soundly."""


class ChatCodec:
    """Writes and reads conversations in the form of a model's chat template.

    It finds out by rendering probes how the template ends turns, shows tools and writes calls. A
    template that shows no tools has them described in the message of the system, in Hermes' form.
    """

    def __init__(
        self,
        template: ChatRenderer,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        past_thoughts: PastThoughts = "keep",
        tool_format: ToolFormat = "template",
        system_prompt: str = "",
        end_tokens: Sequence[int] = (),
    ) -> None:
        """Raises ValueError for a template that cannot hold such conversations."""
        self._template = template
        self._tools = list(tools)
        self.past_thoughts = past_thoughts
        self._special_tokens = template.special_tokens()
        self._special = _match_any(self._special_tokens.values())
        self._ends = {token for token, text in self._special_tokens.items() if text not in _TAGS}
        self._ends |= set(end_tokens)
        self._end_tokens = list(end_tokens[:1])
        self._system_prompt = system_prompt
        self._has_native_tools = False
        self._parse_calls = parse_hermes
        self._parallel = True
        self.turn_end = self._find_turn_end()
        """Text of the special token that ends a message of the policy; "" for none."""
        self._folds_system = not self._takes_system()
        self._joins_users = not self._takes([*_PROBE, *_PROBE])
        if self._tools and tool_format == "template" and self._shows_tools():
            self._has_native_tools = True
            self._choose_parser()

    # --- to tokens

    def encode_prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Encode a whole conversation, up to where the policy goes on."""
        marks = find_marks(messages, self._tools)
        return self._encode(self._render(messages, marks, generation=True), marks)

    def encode_continuation(
        self,
        history: Sequence[ChatMessage],
        answer: ChatMessage,
        following: Sequence[ChatMessage],
    ) -> list[int]:
        """Encode what stands between the policy's `answer` and where it goes on.

        That is the end of its turn, the messages that follow, and the generation prompt.
        """
        marks = find_marks([*history, answer, *following], self._tools)
        stub = self._stub(answer, marks.end)
        text = self._render([*history, stub, *following], marks, generation=True)
        return self._encode(self._after_answer(text, marks.end), marks)

    def rewrites(
        self,
        history: Sequence[ChatMessage],
        answer: ChatMessage,
        following: Sequence[ChatMessage],
    ) -> bool:
        """Tell whether the template shows something else of the past once messages follow.

        Another spelling of the policy's own words is nothing else, but a thought left out is.
        """
        marks = find_marks([*history, answer, *following], self._tools)
        marked = dict(answer)
        if answer.get("reasoning_content"):
            marked["reasoning_content"] = marks.thought
        before = self._render(history, marks)
        after = self._render([*history, marked, *following], marks, generation=True)
        keeps_thought = marks.thought in after or not answer.get("reasoning_content")
        return not (after.startswith(before) and keeps_thought)

    def encode_answer(self, message: ChatMessage) -> list[int]:
        """Encode what the policy has to say for a message of it, the end of the turn included."""
        marks = find_marks([message], self._tools)
        text = self._write_answer(self._shield(message, marks.inside), marks)
        return self._encode(text + self.turn_end, marks) + self._end_without_text()

    def encode_words(self, text: str) -> list[int]:
        """Encode a response as it stands, the end of the turn included."""
        return self._template.encode([text + self.turn_end])[0] + self._end_without_text()

    def _end_without_text(self) -> list[int]:
        """The token that ends a turn where the template writes none."""
        if self.turn_end:
            return []
        return self._end_tokens

    def _write_answer(self, message: ChatMessage, marks: Marks) -> str:
        """Write a message of the policy as the template does, from where the policy begins.

        A thought that the template leaves out is written in front.
        """
        thought = message.get("reasoning_content", "")
        spoken = {key: value for key, value in message.items() if key != "reasoning_content"}
        written = spoken
        if thought:
            written = spoken | {"reasoning_content": marks.thought}
        start = self._render_plainly(_PROBE, generation=True)
        whole = self._render_plainly([*_PROBE, written])
        if whole.startswith(start) and (marks.thought in whole or not thought):
            return self._without_turn_end(whole[len(start) :]).replace(marks.thought, thought)
        body = self._write_after_opening(spoken)
        if self._template.opens_thought:
            return f"{thought}\n{THOUGHT_END}\n\n{body}"
        if thought:
            return f"{THOUGHT_BEGIN}{thought}{THOUGHT_END}\n{body}"
        return body

    def _write_after_opening(self, message: ChatMessage) -> str:
        """Write a message without a thought, and without what stands before any such message."""
        length = len(self._render_plainly(_PROBE))
        answer = self._render_plainly([*_PROBE, {"role": "assistant", "content": "answer"}])
        opening = answer[length : answer.rindex("answer")]
        text = self._render_plainly([*_PROBE, message])[length:]
        return self._without_turn_end(text.removeprefix(opening))

    # --- from tokens

    def read_answer(self, tokens: Sequence[int]) -> Answer:
        """Read what the policy sampled."""
        text, ended = self._decode_answer(list(tokens))
        if self._template.opens_thought and not text.lstrip().startswith(THOUGHT_BEGIN):
            text = THOUGHT_BEGIN + text
        reasoning = ""
        closed = True
        if text.lstrip().startswith(THOUGHT_BEGIN):
            thought, end, text = text.lstrip()[len(THOUGHT_BEGIN) :].partition(THOUGHT_END)
            reasoning = thought.strip()
            closed = bool(end)
        content = text
        calls: list[ParsedCall] = []
        if self._tools:
            content, calls = self._parse_calls(text)
        if not self._parallel:
            calls[1:] = [call._replace(error="one call at a time") for call in calls[1:]]
        sound = all(not call.error for call in calls) and bool(calls or content.strip())
        return Answer(content.strip(), reasoning, calls, ended and closed and sound)

    def _decode_answer(self, tokens: list[int]) -> tuple[str, bool]:
        """Decode a response; returns (text without the end of the turn, whether it has one).

        Where no token ends a turn, each response has its end.
        """
        ended = not self.turn_end
        while tokens and tokens[-1] in self._ends:
            tokens = tokens[:-1]
            ended = True
        return self._template.decode_exactly(tokens), ended

    # --- renderings

    def _render_plainly(self, messages: Sequence[ChatMessage], generation: bool = False) -> str:
        """Render a conversation whose texts have no special tokens."""
        return self._render_with(self._tools, messages, generation)

    def _render(
        self, messages: Sequence[ChatMessage], marks: Marks, generation: bool = False
    ) -> str:
        """Render a conversation, with a mark inside each special token that a text spells."""
        tools = self._shield(self._tools, marks.inside)
        return self._render_with(tools, self._shield(messages, marks.inside), generation)

    def _render_with(
        self,
        tools: Sequence[Mapping[str, Any]],
        messages: Sequence[ChatMessage],
        generation: bool,
    ) -> str:
        said = self._to_template(messages, tools)
        native_tools = tools if self._has_native_tools else None
        return self._template.render(said, native_tools, add_generation_prompt=generation)

    def _shield(self, value: Any, mark: str) -> Any:
        """Put a mark inside what would become a special token, in all texts of a message."""
        if isinstance(value, str):
            starts = [match.start() + 1 for match in self._special.finditer(value)]
            pieces = [value[i:j] for i, j in zip([0, *starts], [*starts, None], strict=True)]
            return mark.join(pieces)
        if isinstance(value, Mapping):
            return {
                self._shield(key, mark): self._shield(item, mark) for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._shield(item, mark) for item in value]
        return value

    def _encode(self, text: str, marks: Marks) -> list[int]:
        """Encode a rendering, each piece between marks by itself."""
        pieces = self._template.encode(text.split(marks.inside))
        return [token for piece in pieces for token in piece]

    def _stub(self, answer: ChatMessage, mark: str) -> dict[str, Any]:
        """Stand in for the policy's words: a message of the same kind that ends with a mark."""
        stub: dict[str, Any] = {"role": "assistant", "content": mark}
        if answer.get("tool_calls") and self._has_native_tools:
            stub["content"] = ""
            stub["tool_calls"] = [
                call | {"function": call["function"] | {"arguments": {"value": mark}}}
                for call in answer["tool_calls"]
            ]
        return stub

    def _after_answer(self, text: str, mark: str) -> str:
        """Return what follows the policy's stub in a rendering, from the end of the turn on."""
        _, found, after = text.rpartition(mark)
        if not found or self.turn_end not in after:
            raise ValueError(
                "model.name: the chat template leaves out what the policy has said before"
            )
        return after[after.index(self.turn_end) :]

    def _to_template(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Say messages as the template takes them: without a role or a call that it lacks."""
        converted: list[dict[str, Any]] = [dict(message) for message in messages]
        if self._system_prompt:
            converted = add_system_prompt(converted, self._system_prompt)
        if tools and not self._has_native_tools:
            converted = say_tools(converted, tools)
        if not self._parallel:
            converted = [_with_one_call(message) for message in converted]
        if self._folds_system:
            converted = fold_system(converted)
        if self._joins_users:
            converted = join_users(converted)
        return converted

    # --- probes

    def _render_alone(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Render messages as they stand."""
        return self._template.render(messages, tools, add_generation_prompt=False)

    def _find_turn_end(self) -> str:
        """Find the special token that ends the policy's turn; ValueError if there are no turns."""
        try:
            end = self._special.search(self._template.find_turn_end())
        except ValueError as error:
            raise ValueError(f"model.name: {error}") from None
        if end is None:
            return ""
        return end[1]

    def _takes_system(self) -> bool:
        """Tell whether the template has a role of the system."""
        return self._takes([{"role": "system", "content": "instruction"}, *_PROBE])

    def _takes(self, messages: Sequence[ChatMessage]) -> bool:
        """Tell whether the template renders these messages, the words of the first included."""
        try:
            text = self._render_alone(messages)
        except ValueError:
            return False
        return messages[0]["content"] in text

    def _shows_tools(self) -> bool:
        """Tell whether the template shows tools; ValueError if it cannot."""
        try:
            with_tools = self._render_alone(_PROBE, self._tools)
        except ValueError as error:
            raise ValueError(f"model.tool_format: {error}; {_SAY_HERMES}") from None
        return with_tools != self._render_alone(_PROBE)

    def _choose_parser(self) -> None:
        """Choose the parser that reads the template's own form of a call.

        Raises ValueError where none does, or the template takes no result of a tool.
        """
        name = self._tools[0]["function"]["name"]
        calls = [_build_call(name, f"call{number:05}", number) for number in range(2)]
        try:
            text = self._write_calls(calls[:1])
            result = {"role": "tool", "content": "result", "tool_call_id": "call00000"}
            tail = self._after_answer(
                self._render_plainly([*_PROBE, self._stub(_calling(calls[:1]), "mark"), result]),
                "mark",
            )
        except ValueError as error:
            raise ValueError(f"model.tool_format: {error}; {_SAY_HERMES}") from None
        wanted = [(name, {"value": 0})]
        readers = [parse for parse in PARSERS.values() if _read_calls(parse, text) == wanted]
        if not readers or "result" not in tail:
            raise ValueError(
                f"model.tool_format: the chat template writes a tool's call as {text!r:.200}, "
                f"which is none of the forms {', '.join(PARSERS)}; {_SAY_HERMES}"
            )
        self._parse_calls = readers[0]
        try:
            both = _read_calls(readers[0], self._write_calls(calls))
        except ValueError:
            both = []
        self._parallel = both == [*wanted, (name, {"value": 1})]

    def _write_calls(self, calls: list[dict[str, Any]]) -> str:
        """Write calls as the template does, without what stands around the policy's words."""
        start = self._render_plainly(_PROBE)
        text = self._render_plainly([*_PROBE, _calling(calls)])
        written = self._without_turn_end(text[len(start) :])
        generation_prompt = self._render_plainly(_PROBE, generation=True).removeprefix(start)
        return written.removeprefix(generation_prompt)

    def _without_turn_end(self, text: str) -> str:
        if self.turn_end and self.turn_end in text:
            return text[: text.rindex(self.turn_end)]
        return text.rstrip("\n")


def find_marks(*values: object) -> Marks:
    """Make marks that stand nowhere in these values, and are themselves in every notation."""
    text = repr(values)  # letters and digits stand in it as they are
    number = 0
    while f"qz{number}" in text:
        number += 1
    return Marks(f"qz{number}inside", f"qz{number}end", f"qz{number}thought")


def _match_any(texts: Iterable[str]) -> re.Pattern[str]:
    """Match every place where one of the texts begins, be it inside another, as group 1."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    if not longest_first:
        return re.compile("(?!)")
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")


def _with_one_call(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out all calls of a message but the first."""
    if not message.get("tool_calls"):
        return message
    return message | {"tool_calls": message["tool_calls"][:1]}


def _build_call(name: str, call_id: str, value: int) -> dict[str, Any]:
    return build_function_call(name, call_id, {"value": value})


def _calling(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _read_calls(parse: ParseCalls, text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of the calls after a thought; none if there is anything else."""
    content, calls = parse(text.rpartition(THOUGHT_END)[2])
    if content.strip() or any(call.error for call in calls):
        return []
    return [(call.name, call.arguments) for call in calls]


_SAY_HERMES = (
    "set it to hermes to have tools described in the system message and called in Hermes' form"
)
