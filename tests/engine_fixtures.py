"""A tiny random policy on disk, and engines serving it: real vLLM and the fake one."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 512


def build_tiny_model(
    directory: Path, *, vocabulary: int = VOCABULARY, hidden: int = 64, layers: int = 2, heads: int = 2, seed: int = 0, scale: float = 0.05
) -> Path:
    """Write a Qwen3 model with random float32 weights (std `scale`) and a one-token-a-word tokenizer; returns `directory`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=scale,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    words = {"<end>": 0} | {f"w{i}": i for i in range(1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(directory)
    return directory
