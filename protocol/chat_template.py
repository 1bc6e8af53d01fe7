"""Chat templates as transformers renders them, and what a generation prompt says of a thought.

Actors have no transformers: its import takes seconds and tens of megabytes in each process, for the
few lines that a template needs. Tests hold that the same text comes of each construct.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from protocol.chat_format import ChatFormat

THOUGHT_BEGIN = "<think>"
THOUGHT_END = "</think>"

GIVEN_ARGUMENTS = frozenset(["messages", "tools", "documents", "add_generation_prompt"])
"""Arguments that every template is rendered with."""

PROBE = "What-is-asked-or-answered"
"""Text of a message by which its place in a rendered conversation is found."""


class GenerationBlocks(jinja2.ext.Extension):
    """Renders `{% generation %}…{% endgeneration %}`, which marks an answer, as what is inside."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parse one block; names that are set inside are not seen outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> str:
        return caller()


class ChatTemplate:
    """A chat template that has been compiled."""

    def __init__(self, chat: ChatFormat) -> None:
        """Raises ValueError for a template that is none, and arguments that it does not take."""
        self._chat = chat
        environment = _build_environment()
        try:
            self._template = environment.from_string(chat.template)
            parsed = environment.parse(chat.template)
        except jinja2.TemplateError as error:
            raise ValueError(f"model.name: the chat template is none: {error}") from None
        names = jinja2.meta.find_undeclared_variables(parsed)
        known = {*environment.globals, *GIVEN_ARGUMENTS, *chat.special_tokens}
        _check_arguments(chat.arguments, sorted(names - known))
        self.thought = _find_thought(self.render_prompt(PROBE))
        """Thought that the generation prompt opens, or opens and closes; "" for none."""

    @property
    def opens_thought(self) -> bool:
        """True if a response begins inside a thought."""
        return bool(self.thought) and THOUGHT_END not in self.thought

    def render_prompt(self, message: str) -> str:
        """Render one user message, up to where the assistant's answer begins."""
        try:
            return self.render(self._begin(message), add_generation_prompt=True)
        except ValueError as error:
            setting = "model.name"
            if self._chat.system_prompt:
                setting = "model.system_prompt"
            raise ValueError(f"{setting}: {error}") from None

    def find_turn_end(self) -> str:
        """Return the text that follows an answer; ValueError of a template that renders none."""
        answer = {"role": "assistant", "content": PROBE}
        text = self.render([*self._begin("?"), answer], add_generation_prompt=False)
        _, answered, after = text.rpartition(PROBE)
        if not answered:
            raise ValueError("the chat template leaves out what the policy has said before")
        return after

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render a conversation; ValueError with the reason of a template that refuses it."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._chat.special_tokens | self._chat.arguments,
            )
        except jinja2.TemplateError as error:
            reason = str(error)
        except Exception as error:  # whatever its expressions raise
            reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"the chat template refuses a conversation: {reason}")

    def _begin(self, message: str) -> list[dict[str, str]]:
        messages = [{"role": "user", "content": message}]
        if self._chat.system_prompt:
            messages.insert(0, {"role": "system", "content": self._chat.system_prompt})
        return messages


def _build_environment() -> jinja2.Environment:
    """Build what transformers compiles templates in."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, jinja2.ext.loopcontrols],
    )
    environment.globals["raise_exception"] = _raise_template_error
    environment.globals["strftime_now"] = _format_time
    environment.filters["tojson"] = _to_json
    return environment


def _raise_template_error(reason: str) -> None:
    raise jinja2.TemplateError(reason)


def _format_time(form: str) -> str:
    """The local time of day, without a zone."""
    return datetime(*time.localtime()[:6]).strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands: jinja's own filter is for HTML, and spells <, >, & and ' otherwise."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _check_arguments(arguments: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in arguments:
        if name in known:
            continue
        takes = f"it takes {', '.join(known)}"
        if not known:
            takes = "it takes none; leave it out"
        raise ValueError(
            f"model.template_arguments.{name}: the model's chat template has no such argument; "
            f"{takes}"
        )


def _find_thought(prompt: str) -> str:
    """Return what the generation prompt says of a thought, from its opening tag on."""
    _, probe, after = prompt.rpartition(PROBE)
    if not probe:
        raise ValueError("model.name: the chat template leaves the user's message out")
    begin = after.rfind(THOUGHT_BEGIN)
    if begin >= 0:
        return after[begin:]
    end = after.find(THOUGHT_END)
    if end >= 0:  # some close a thought that they have not opened
        return THOUGHT_BEGIN + after[end:]
    return ""
