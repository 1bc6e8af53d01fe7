"""A new policy can copy what came before, and nothing else is in it yet."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from learner.warm_start.induction import ROPE_THETA, start_with_induction


def new_model(hidden: int, layers: int = 2, induction: bool = True) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=500,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        tie_word_embeddings=True,
        initializer_range=hidden**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    if induction:
        start_with_induction(model)
    return model


def repeated() -> torch.Tensor:
    """Forty random tokens, twice."""
    half = torch.randint(500, (8, 40), generator=torch.Generator().manual_seed(1))
    return torch.cat([half, half], dim=1)


@torch.no_grad()
def surprise(model: Qwen3ForCausalLM, start: int, stop: int) -> float:
    """Mean cross-entropy, in nats, of the tokens at positions start to stop."""
    tokens = repeated()
    log_p = model(tokens).logits.log_softmax(-1)
    return -float(log_p[:, start - 1 : stop - 1].gather(2, tokens[:, start:stop, None]).mean())


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (128, 2), (128, 3)])
def test_it_predicts_a_repetition(hidden, layers):
    model = new_model(hidden, layers)
    assert surprise(model, 41, 80) < surprise(model, 1, 40) - 2.0
    assert surprise(new_model(hidden, layers, induction=False), 41, 80) > 6.0


@torch.no_grad()
def test_the_first_head_looks_at_the_token_before():
    attention = new_model(128)(repeated(), output_attentions=True).attentions[0][:, 0]
    assert float(attention.diagonal(-1, 1, 2).mean()) > 0.9


def test_a_single_layer_is_left_alone():
    plain = new_model(64, 1, induction=False)
    treated = new_model(64, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), treated.parameters(), strict=True)
    )
