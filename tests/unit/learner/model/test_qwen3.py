"""The learner's own forward pass computes what transformers computes."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from learner.model import qwen3

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
}


def policy(**changes) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(**SMALL | {"num_key_value_heads": 4, "initializer_range": 0.2} | changes)
    )


def check_positions(model: Qwen3ForCausalLM, positions: list[tuple[int, int]]) -> None:
    """Compare hidden states and gradients at (row, column)s of 5 rows of 23 with transformers'."""
    tokens = torch.randint(0, 50, (5, 23), generator=torch.Generator().manual_seed(1))
    rows, columns = torch.tensor(positions).T
    weights = torch.randn(len(positions), 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for hidden in (
        qwen3.hidden_states(model, tokens, rows, columns),
        model.model(input_ids=tokens, use_cache=False).last_hidden_state[rows, columns],
    ):
        model.zero_grad()
        (hidden * weights).sum().backward()
        gradients.append([hidden.detach(), *(p.grad.clone() for p in model.model.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 2}, {"attention_bias": True}, {"num_hidden_layers": 1}]
)
@pytest.mark.parametrize("first", [0, 4])
def test_hidden_states_and_gradients_equal_those_of_transformers(changes, first, checkpointing):
    model = policy(**changes)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_positions(model, [(0, first), (0, 7), (2, 22), (4, 4), (4, 21)])


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 22)), min_size=1, max_size=12))
@example([(0, column) for column in range(23)])
@example([(row, column) for row in (3, 1) for column in range(11, -1, -1)])
def test_hidden_states_of_any_positions_equal_those_of_transformers(positions):
    """Whatever rows and columns are trained, some of them twice."""
    check_positions(policy(num_key_value_heads=2), positions)


def test_only_models_that_it_computes_are_taken():
    llama = LlamaForCausalLM(LlamaConfig(**SMALL))
    sliding = policy(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert (
        qwen3.applies_to(policy()) and not qwen3.applies_to(llama) and not qwen3.applies_to(sliding)
    )
