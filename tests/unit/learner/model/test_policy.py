"""The learner computes of a model, of whatever family, what the model itself computes."""

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
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from learner.data.batching import MicroBatch
from learner.model.policy import attention_of, load_policy, log_probs
from learner.model.sharding import Policy
from learner.ranks import Ranks

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPE |= {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}
FAMILIES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "granite": lambda: GraniteForCausalLM(
        GraniteConfig(**SHAPE, logits_scaling=8.0, attention_dropout=0.5)
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.0625)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=3.0)),
    "gemma2 with capped attention": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, attn_logit_softcapping=0.5, sliding_window=4)
    ),
    "gemma2 with another scale": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SHAPE, attn_logit_softcapping=None, query_pre_attn_scalar=3, sliding_window=4
        )
    ),
    "gpt-oss, with attention sinks": lambda: GptOssForCausalLM(
        GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, sliding_window=4)
    ),
    "mistral, with a window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
    "mixtral, with a noisy router": lambda: MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=2, router_jitter_noise=0.5)
    ),
    "qwen2, with windows in some layers": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **{name: value for name, value in SHAPE.items() if name != "head_dim"},
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        )
    ),
    "qwen3 with biases": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, attention_bias=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    ),
}


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_models_own_forward_pass_without_its_dropout(
    family: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = FAMILIES[family]()
    own.set_attn_implementation("eager")
    tokens = torch.randint(2, 50, (3, 11))
    rows = torch.tensor([0, 0, 1, 2])
    columns = torch.tensor([1, 10, 5, 7])
    with torch.no_grad():
        logits = own.eval()(input_ids=tokens).logits[rows, columns - 1].float() / 0.7
    expected = logits.log_softmax(-1).gather(-1, tokens[rows, columns][:, None]).squeeze(-1)
    zeros = torch.zeros(4)
    batch = MicroBatch(
        tokens,
        rows,
        columns,
        turn=rows,
        turns=3,
        log_mu=zeros,
        log_prox=None,
        advantage=zeros,
        age=torch.zeros(4, dtype=torch.int64),
        padding=0,
    )
    found, _ = log_probs(load_policy(saved(own, tmp_path)), batch, temperature=0.7)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_model_whose_logits_come_about_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    capped = RecurrentGemmaConfig(
        **SHAPE, lru_width=32, attention_window_size=16, logits_soft_cap=0.5
    )
    with pytest.raises(
        ValueError, match=r"model\.name: .*logits of a RecurrentGemmaForCausalLM.*another policy"
    ):
        load_policy(saved(RecurrentGemmaForCausalLM(capped), tmp_path))


@pytest.mark.parametrize(("cap", "attention"), [(50.0, "eager"), (None, "sdpa")])
def test_the_models_own_attention_is_used_where_the_fused_one_leaves_something_out(
    cap, attention: str, tmp_path: Path
) -> None:
    config = Gemma2Config(**SHAPE, attn_logit_softcapping=cap, sliding_window=100)
    policy = load_policy(saved(Gemma2ForCausalLM(config), tmp_path))
    assert (attention_of(policy), policy.config.sliding_window, policy.training) == (
        attention,
        100,
        True,
    )


def test_a_model_without_a_list_of_layers_cannot_be_shared_by_ranks() -> None:
    with pytest.raises(ValueError, match=r"learner\.ranks: .*GPT2LMHeadModel"):
        Policy(FAMILIES["gpt2"](), Ranks(rank=0, size=2))
