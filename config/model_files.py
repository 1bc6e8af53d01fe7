"""Facts that a model's files tell before it is loaded, and the settings that follow.

The files are in its directory, or in the Hugging Face hub's cache. Of some models the figures come
with the project (known_models.json), so that a run can be planned before they are fetched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from config.engine import EngineSection, SamplingSection
from protocol.chat_format import ChatOptions
from protocol.chat_template import THOUGHT_BEGIN, THOUGHT_END, ChatTemplate
from protocol.model_json import read_model_json, text_config
from protocol.prompting import read_chat_format

CONFIG_FILE = "config.json"

KNOWN_MODELS = Path(__file__).with_name("known_models.json")
"""{name on the hub: figures of its config.json, and "thinks"}."""

SHORT_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Names that this project has for models of the hub."""

THINKING_MAX_TOKENS = 2048
"""Response budget of a model that thinks of itself: hundreds of tokens before it acts."""

THINKING_MAX_MODEL_LEN = 8192


class ModelFiles(NamedTuple):
    """Facts of a model that are known without loading it."""

    figures: dict[str, Any]
    """The contents of its config.json, or those figures that the project has of it."""
    thinks: bool
    """True if its chat template has thoughts, and does not close one before the answer."""
    source: str
    """Where the figures are from, in words."""


def read_model_files(
    name: str, directory: Path | None = None, chat: ChatOptions | None = None
) -> ModelFiles | None:
    """Read what is known of the model of a name; None if that is nothing.

    `directory` has its files, if they are somewhere else than the name says. Raises ValueError for
    a config.json that is none.
    """
    file = _find_config_file(name, directory or Path(name))
    if file is not None:
        figures = read_model_json(file)
        return ModelFiles(figures, _has_thoughts(file.parent, chat), f"by its {CONFIG_FILE}")
    repository = SHORT_NAMES.get(name, name.partition("@")[0]).lower()
    for known, figures in json.loads(KNOWN_MODELS.read_text()).items():
        if known.lower() == repository:
            source = "by this project's figures of known models: the model is not here"
            return ModelFiles(figures, bool(figures.get("thinks")), source)
    return None


def settings_of_model(name: str, chat: ChatOptions | None = None) -> dict[str, Any]:
    """{full name: value} of the settings that follow from a model and are not the plain ones.

    A model that thinks of itself gets longer responses, and none more tokens than it was made for.
    """
    if name == "tiny":  # which is made on the spot
        return {}
    try:
        files = read_model_files(name, chat=chat)
    except (OSError, ValueError):  # which another check reports
        files = None
    if files is None:
        return {}
    plain = {
        "sampling.max_tokens": SamplingSection().max_tokens,
        "engine.max_model_len": EngineSection().max_model_len,
    }
    values = dict(plain)
    if files.thinks:
        values["sampling.max_tokens"] = THINKING_MAX_TOKENS
        values["engine.max_model_len"] = THINKING_MAX_MODEL_LEN
    longest = longest_text(files)
    if longest:
        values["engine.max_model_len"] = min(values["engine.max_model_len"], longest)
        values["sampling.max_tokens"] = min(values["sampling.max_tokens"], longest // 2)
    return {full: value for full, value in values.items() if value != plain[full]}


def longest_text(files: ModelFiles) -> int:
    """Return how many tokens the model was made for; 0 if its configuration does not say."""
    longest = text_config(files.figures).get("max_position_embeddings")
    if isinstance(longest, int):
        return longest
    return 0


def _find_config_file(name: str, directory: Path) -> Path | None:
    """Find the model's config.json: in a directory, or in the hub's cache."""
    if (directory / CONFIG_FILE).is_file():
        return directory / CONFIG_FILE
    if directory.is_dir() or "/" not in name:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(repository, CONFIG_FILE, revision=revision or None)
    except HFValidationError:
        return None
    if isinstance(found, str):
        return Path(found)
    return None


def _has_thoughts(directory: Path, chat: ChatOptions | None) -> bool:
    try:
        chat_format = read_chat_format(directory, chat)
        if THOUGHT_BEGIN not in chat_format.template:
            return False
        return THOUGHT_END not in ChatTemplate(chat_format).thought
    except (OSError, ValueError):  # which another check reports
        return False
