"""The tokens that control looks for in a response, and those that it forces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from config import ControlSection
from controller.rules.thinking import RuleSpec, ThinkingSettings
from envs.base import Environment
from protocol.prompting import read_turn_end, read_vocabulary

UNCONTROLLED = ("off", "void")
"""Modes of control that need no tags."""

NO_TOKEN = -1
"""No token of any response."""


@dataclass(frozen=True)
class ThinkTokens:
    """Tokens that control looks for and forces, and how many there are."""

    open: int  # <think>
    close: int  # </think>
    closing_tokens: list[int]  # what is forced to end thinking
    end: list[int]  # end-of-turn tokens
    vocabulary: int  # tokens that the policy chooses from


def load_think_tokens(model_dir: Path, env: Environment, control: ControlSection) -> ThinkTokens:
    """Look up the ids of the tags that control looks for and forces.

    `model_dir` holds the policy in Hugging Face's format. Raises ValueError when control needs a
    tag that is not one token, or the policy's end of a turn is none. With control.on_cut "queue",
    what is forced is how the environment's answers go on after a thought, up to the action itself.
    """
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    vocabulary = read_vocabulary(model_dir)
    turn_end = read_turn_end(model_dir)
    end = tokenizer.token_to_id(turn_end)
    if end is None:
        raise ValueError(
            f"model.name: the tokenizer of {model_dir} has no token {turn_end}, which its "
            "tokenizer_config.json names eos_token"
        )
    think_open = tokenizer.token_to_id("<think>")
    think_close = tokenizer.token_to_id("</think>")
    if think_open is None or think_close is None:
        if control.mode in UNCONTROLLED:
            return ThinkTokens(NO_TOKEN, NO_TOKEN, [], [end], vocabulary)
        ids = {"<think>": think_open, "</think>": think_close}
        missing = [tag for tag, token in ids.items() if token is None]
        raise ValueError(
            f"model.name: the tokenizer has no single token for {', '.join(missing)}; add it, or "
            "set control.mode to off"
        )
    text = "</think>"
    if control.on_cut != "close":
        text = answer_after_thought(env)
    closing_tokens = tokenizer.encode(text, add_special_tokens=False).ids
    return ThinkTokens(think_open, think_close, closing_tokens, [end], vocabulary)


def build_rule_spec(
    control: ControlSection, tokens: ThinkTokens, epsilon: float | None
) -> RuleSpec:
    """Make the token-level rule of `control`, with the threshold in force."""
    t2po = control.t2po
    settings = ThinkingSettings(
        score=t2po.score,
        alpha=t2po.alpha,
        vocabulary=tokens.vocabulary,
        delta_statistic=t2po.delta_statistic,
        window=t2po.window,
        epsilon=epsilon,
        min_thinking=t2po.min_thinking,
        max_thinking=control.max_thinking,
    )
    return RuleSpec(settings, tokens.open, tokens.close, tokens.closing_tokens)


def answer_after_thought(env: Environment) -> str:
    r"""Return the text between a thought and its action in a well-formed answer.

    It is "</think>\n<action>", or for Search "</think>\n".
    """
    opening, _, rest = env.format_response("THOUGHT", "ACTION").partition("THOUGHT")
    between, action, _ = rest.partition("ACTION")
    if opening == "<think>" and action and between.startswith("</think>"):
        return between
    return "</think>\n"
