"""Responses of a policy without an engine, one at a time: for looking at a checkpoint play."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig

from config import Decoding
from learner.model.policy import load_policy
from protocol.chat_format import ChatOptions
from protocol.prompting import load_prompter


@runtime_checkable
class _Generates(Protocol):
    """A model with the `generate` of transformers' GenerationMixin, by what is asked of it here."""

    def generate(
        self, inputs: Tensor, *, attention_mask: Tensor, generation_config: GenerationConfig
    ) -> Tensor:
        """Return prompts [B, S] with their responses [B, S + up to max_new_tokens]."""
        ...


class LocalGenerator:
    """The policy in a Hugging Face directory."""

    def __init__(
        self,
        directory: Path,
        decoding: Decoding,
        max_tokens: int,
        seed: int,
        chat: ChatOptions | None = None,
    ) -> None:
        """ValueError for a model that cannot generate, or a template that `chat` does not fit."""
        model = load_policy(directory).eval()
        if not isinstance(model, _Generates):
            raise ValueError(f"model.name: a {type(model).__name__} cannot generate")
        self._model = model
        self.prompter = load_prompter(directory, chat)
        ends = self.prompter.chat.end_tokens
        sampling: dict[str, object] = {"do_sample": False}
        if not decoding.greedy:
            sampling = {"do_sample": True, **decoding._asdict()}
        self._generation = GenerationConfig(
            max_new_tokens=max_tokens, eos_token_id=ends, pad_token_id=ends[0], **sampling
        )
        torch.manual_seed(seed)

    def __call__(self, message: str) -> str:
        """Return the response to one user message, with the thought that its prompt begins."""
        return self.prompter.read_response(self.sample(self.prompter.encode_prompt(message)))

    @torch.inference_mode()
    def sample(self, prompt: list[int]) -> list[int]:
        """Return the tokens of a response to a prompt."""
        prompts = torch.tensor([prompt])
        tokens = self._model.generate(
            prompts, attention_mask=torch.ones_like(prompts), generation_config=self._generation
        )
        return tokens[0, len(prompt) :].tolist()
