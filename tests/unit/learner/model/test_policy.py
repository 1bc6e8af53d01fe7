"""The learner computes of a model, of whatever family, what the model itself computes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from learner.data.batching import MicroBatch
from learner.model.policy import (
    attention_of,
    can_share_prompts,
    keep_no_activations,
    load_policy,
    log_probs,
    read_config,
)
from tests.fixtures.families import FAMILIES, SHAPE, saved


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
        torch.zeros(0, dtype=torch.int64),
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


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_shared_only_where_layers_keep_keys(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_policy(saved(FAMILIES[family](), tmp_path))
    assert can_share_prompts(model)
    keep_no_activations(model)
    assert not can_share_prompts(model)


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


def test_model_with_code_of_its_own_is_refused_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks at the terminal whether to run it, if it is not told."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("class MineConfig: pass")
    with pytest.raises(ValueError, match=r"custom code|execute"):
        read_config(tmp_path)
    assert not asked
