"""Responses without an engine end, and are read, as those of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from config import Decoding
from learner.model.local_generation import LocalGenerator
from protocol.chat_format import ChatOptions
from protocol.prompting import read_vocabulary
from tests.fixtures.chat_templates import OPENS


def test_generator_ends_at_any_end_token_of_the_model(small_policy: Path, tmp_path: Path) -> None:
    """Where each token is one, a response is no more than what its prompt has of a thought."""
    directory = tmp_path / "model"
    shutil.copytree(small_policy, directory)
    (directory / "chat_template.jinja").write_text(OPENS)
    ends = {"eos_token_id": list(range(read_vocabulary(directory)))}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    decoding = Decoding(1.0, top_k=0, top_p=1.0)
    generate = LocalGenerator(directory, decoding, 20, seed=0, chat=ChatOptions("Be brief."))
    assert generate("look") == "<think>\n"
