"""TRL's GRPO trainer on given turns, for benchmarks.learner.

It does everything in a step but the generation, and needs the extra trl.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedModel

from config import LearnerSection
from learner.data.samples import TrainingSample


def prepare(
    directory: Path,
    settings: LearnerSection,
    model: PreTrainedModel,
    turns: Sequence[TrainingSample],
) -> Callable[[], None]:
    """Prepare an update on the turns.

    It has as many optimizer steps as ours, and micro-batches of about as many tokens. Its loss
    takes the log-probs of the turns as those of the policy that played them, as ours does; no
    reference, since ours has none.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    longest = max(turn.length for turn in turns)
    rows = max(2, settings.microbatch_tokens // longest)
    steps = max(1, len(turns) // settings.minibatches // rows)
    queue = iter(list(turns) * 2)

    class Recorded(GRPOTrainer):
        """In place of generating and scoring: the next turns."""

        def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
            return as_trl([next(queue) for _ in inputs])

    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=steps,
        num_generations=2,
        max_steps=settings.minibatches,
        learning_rate=1e-6,
        beta=0.0,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    trainer = Recorded(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["-"] * len(turns)}),
    )

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()

    return run


def tokens(settings: LearnerSection, turns: Sequence[TrainingSample]) -> int:
    """Count the tokens of the turns that an update takes: whole micro-batches only."""
    rows = max(2, settings.microbatch_tokens // max(turn.length for turn in turns))
    steps = max(1, len(turns) // settings.minibatches // rows)
    return sum(turn.length for turn in (list(turns) * 2)[: rows * steps * settings.minibatches])


def as_trl(turns: Sequence[TrainingSample]) -> dict[str, Tensor]:
    """Prompts padded on the left, responses on the right, as its trainer has them."""
    prompts = [torch.from_numpy(turn.prompt.astype("int64")) for turn in turns]
    responses = [torch.from_numpy(turn.response.astype("int64")) for turn in turns]
    prompt_ids = pad_sequence(prompts, batch_first=True, padding_side="left")
    prompt_mask = pad_sequence(
        [torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"
    )
    mask = pad_sequence([torch.ones_like(r) for r in responses], batch_first=True)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": pad_sequence(responses, batch_first=True),
        "completion_mask": mask,
        "advantages": torch.tensor([turn.advantage for turn in turns]),
        "old_per_token_logps": pad_sequence(
            [torch.from_numpy(turn.log_mu) for turn in turns], batch_first=True
        ),
        "num_items_in_batch": mask.sum(),
    }
