"""The tokens that control looks for in a response, and those that it forces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config import ControlSection
from controller.rules.thinking import RuleSpec, ThinkingSettings, ThinkTags
from envs.base import Environment
from envs.conversation import is_conversation
from envs.harness import is_harness
from protocol.chat_template import THOUGHT_BEGIN, THOUGHT_END
from protocol.prompting import Prompter, read_vocabulary

UNCONTROLLED = ("off", "void")
"""Modes of control that look at nothing."""

STEERED = ("budget", "t2po", "t2po-token")
"""Modes of control that carry out the interventions of the token-level rule."""


@dataclass(frozen=True)
class ThinkTokens:
    """Tokens that control looks for and forces, and how many there are."""

    tags: ThinkTags
    closing_tokens: list[int]  # what is forced to end thinking
    end: list[int]  # end-of-turn tokens
    vocabulary: int  # tokens that the policy chooses from


def load_think_tokens(
    model_dir: Path, prompter: Prompter, env: Environment, control: ControlSection
) -> ThinkTokens:
    """Look up the tokens of the tags that control looks for and forces.

    `model_dir` holds the policy in Hugging Face's format, and `prompter` is its. Raises ValueError
    when control of thoughts needs a tag that the tokenizer cannot spell. With control.on_cut
    "queue", what is forced is how the environment's answers go on after a thought, up to the action
    itself.
    """
    spellings = {tag: prompter.spell(tag) for tag in (THOUGHT_BEGIN, THOUGHT_END)}
    missing = [tag for tag, spelled in spellings.items() if not spelled]
    if missing and control.mode in STEERED:
        raise ValueError(
            f"model.name: the tokenizer cannot spell {', '.join(missing)}, which control.mode "
            f"{control.mode} looks for; set it to t2po-turn, void or off"
        )
    text = THOUGHT_END
    if control.on_cut != "close":
        text = answer_after_thought(env)
    return ThinkTokens(
        ThinkTags(spellings[THOUGHT_BEGIN], spellings[THOUGHT_END], prompter.opens_thought),
        prompter.encode([text])[0],
        prompter.chat.end_tokens,
        read_vocabulary(model_dir),
    )


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
    return RuleSpec(settings, tokens.tags, tokens.closing_tokens)


def answer_after_thought(env: Environment) -> str:
    r"""Return the text between a thought and its action in a well-formed answer.

    It is "</think>\n<action>", or for Search "</think>\n".
    """
    if is_conversation(env) or is_harness(env):
        return "</think>\n"
    opening, _, rest = env.format_response("THOUGHT", "ACTION").partition("THOUGHT")
    between, action, _ = rest.partition("ACTION")
    if opening == "<think>" and action and between.startswith("</think>"):
        return between
    return "</think>\n"
