"""Settings of the policy and of its warm start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from config.section import Section, says
from protocol.chat_format import ChatOptions, PastThoughts, ToolFormat

NAMED_MODELS = ("tiny", "smollm2")
"""Models that have a name of ours; there are recipes of the same name."""

RUNS_DIR = Path("runs")
"""Directory of the runs that have been given no other."""

SETTINGS_FILE = "config.toml"
"""File of a run's directory that has its settings."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_id(name: str) -> bool:
    """Tell if a name may be OWNER/NAME or OWNER/NAME@REVISION, and means no place here."""
    return _HUB_ID.fullmatch(name) is not None and not is_place(name)


def is_place(name: str) -> bool:
    """Tell if a name means a place on this machine, by the directory that it begins with.

    That is one of this very machine, as `./`, or one that has runs.
    """
    directory = Path(name).parent
    if name.startswith((".", "/", "~")) or directory == RUNS_DIR:
        return True
    return any(directory.glob(f"*/{SETTINGS_FILE}"))


class TinySection(Section, frozen=True):
    """How large the tiny policy is, which is made on the spot."""

    hidden_size: Annotated[int, says("Width", ge=32, multiple_of=16)] = 128
    layers: Annotated[int, says("Layers", ge=1)] = 2
    heads: Annotated[int, says("Attention heads, each of 32", ge=1)] = 4
    vocabulary: Annotated[int, says("Vocabulary of its tokenizer", ge=300)] = 1024
    tokens: Annotated[
        Literal["phrases", "words"],
        says(
            "Tokens: they may join words of a prompt, but for names and "
            "numbers; or they end with each word"
        ),
    ] = "phrases"


class ModelSection(Section, frozen=True):
    """The policy that is trained."""

    name: Annotated[
        str,
        says(
            "Policy: tiny (made on the spot), smollm2 (SmolLM2-135M-Instruct; `make smollm2` "
            "installs it), the path of a Hugging Face directory, or a model of the hub "
            "(OWNER/NAME or OWNER/NAME@REVISION)"
        ),
    ] = "tiny"
    system_prompt: Annotated[
        str, says("Message of the system that every prompt begins with; empty: none")
    ] = ""
    template_arguments: dict[str, Any] = {}
    """Arguments of the chat template, by name (config/template_arguments.py)."""
    past_thoughts: Annotated[
        PastThoughts,
        says(
            "Thoughts of earlier turns of a conversation: keep, so that each prompt goes on where "
            "the last one ended; or as the chat template has it, which mostly drops them"
        ),
    ] = "keep"
    tool_format: Annotated[
        ToolFormat,
        says(
            "How tools are shown and called: as the chat template has it (in Hermes' form where it "
            "has none), or always in Hermes' form, with the tools in the system message"
        ),
    ] = "template"
    tiny: TinySection = TinySection()

    def chat_options(self) -> ChatOptions:
        """What prompts are rendered with, beside the model's own template."""
        return ChatOptions(
            self.system_prompt, self.template_arguments, self.past_thoughts, self.tool_format
        )


class WarmStartSection(Section, frozen=True):
    """How a policy learns by imitation before it is trained."""

    episodes: Annotated[int, says("Expert episodes to learn from; 0: none", ge=0)] = 0
    data: Annotated[
        str,
        says("JSONL file of conversations to learn from, in OpenAI's message format; empty: none"),
    ] = ""
    epochs: Annotated[
        float, says("Passes over the expert's episodes and the conversations", gt=0)
    ] = 1.0
    max_turns: Annotated[
        int,
        says(
            "Turns a demonstration may take; with env.max_turns, long tasks would be won, and so "
            "shown, too rarely",
            ge=1,
        ),
    ] = 60
    expert_error_rate: Annotated[
        float,
        says(
            "Share of the expert's turns with a wrong action, from which to learn how to go on "
            "after one",
            ge=0,
            lt=1,
        ),
    ] = 0.1
    wasted_turn_rate: Annotated[
        float,
        says(
            "Share of the expert's turns that are wasted on looking around, which is left "
            "for RL to improve",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    learning_rate: Annotated[
        float, says("Peak step size of AdamW; linear warm-up, cosine decay", gt=0)
    ] = 1e-4
    muon_learning_rate: Annotated[
        float, says("Peak step size of Muon for the layers' matrices; 0: AdamW has them, too", ge=0)
    ] = 0.0
    threads: Annotated[
        int, says("CPU: cores it computes on; 0: all, since nothing else computes yet", ge=0)
    ] = 0
    batch_tokens: Annotated[int, says("Tokens a step", ge=256)] = 2048

    @property
    def is_wanted(self) -> bool:
        """True if there is anything to learn from."""
        return bool(self.episodes or self.data)
