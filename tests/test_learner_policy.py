"""What the learner computes of a model, of whatever family, is what the model itself computes."""

from pathlib import Path

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from learner.batching import MicroBatch
from learner.policy import load_policy, log_probs
from learner.ranks import Ranks
from learner.sharding import Policy

SHAPE = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.5}
FAMILIES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0, attention_dropout=0.5)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.0625)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=3.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)),
}


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_models_own_forward_pass_without_its_dropout(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = FAMILIES[family]()
    tokens = torch.randint(2, 50, (3, 11))
    rows, columns = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 10, 5, 7])
    with torch.no_grad():
        logits = own.eval()(input_ids=tokens).logits[rows, columns - 1].float() / 0.7
    expected = logits.log_softmax(-1).gather(-1, tokens[rows, columns][:, None]).squeeze(-1)
    zeros = torch.zeros(4)
    batch = MicroBatch(
        tokens, rows, columns, log_mu=zeros, log_prox=None, advantage=zeros, age=torch.zeros(4, dtype=torch.int64), padding=0
    )
    found, _ = log_probs(load_policy(saved(own, tmp_path)), batch, temperature=0.7)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_model_whose_logits_come_about_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    capped = RecurrentGemmaConfig(**SHAPE, lru_width=32, attention_window_size=16, logits_soft_cap=0.5)
    with pytest.raises(ValueError, match=r"model\.name: .*logits of a RecurrentGemmaForCausalLM.*another policy"):
        load_policy(saved(RecurrentGemmaForCausalLM(capped), tmp_path))


def test_a_model_without_a_list_of_layers_cannot_be_shared_by_ranks() -> None:
    with pytest.raises(ValueError, match=r"learner\.ranks: .*GPT2LMHeadModel"):
        Policy(FAMILIES["gpt2"](), Ranks(rank=0, size=2))
