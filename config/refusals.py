"""Say what is wrong with settings: all of it at once, and what was meant.

Names and values of other systems are known here, so that who comes from there is told ours.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from config.options import SHORT_NAMES, describe, kind_of, tagged_sections, this_command

NEAR = 0.5
"""Likeness, from 0 to 1, from which on one name may have been meant by another."""

SETTINGS_ELSEWHERE = {
    "learner.learning_rate": "lr actor_lr step_size",
    "learner.groups_per_update x learner.group_size": (
        "batch_size train_batch_size global_batch_size rollout_batch_size"
    ),
    "learner.group_size": (
        "num_generations rollout_n rollouts_per_example n_samples_per_prompt samples_per_prompt"
    ),
    "learner.minibatches": "mini_batch_size ppo_mini_batch_size num_minibatches",
    "learner.microbatch_tokens": (
        "micro_batch_size per_device_train_batch_size ppo_max_token_len_per_gpu"
    ),
    "learner.algorithm": "adv_estimator advantage advantage_estimator estimator",
    "learner.loss": "policy_loss loss_type correction",
    "learner.loss.clip_low and learner.loss.clip_high": "clip clip_eps clip_range clip_ratio",
    "learner.kl_coef": "beta kl kl_beta kl_loss_coef",
    "learner.algorithm.discount": "gamma",
    "learner.algorithm.gae_lambda": "lam lambda",
    "learner.gradient_clip": "grad_clip max_grad_norm clip_grad",
    "learner.max_staleness": "async_level max_async_level max_off_policy_steps off_policy_steps",
    "learner.checkpoint_every": "save_steps save_freq save_interval checkpoint_interval",
    "eval.every": "eval_steps eval_freq eval_interval test_freq",
    "eval.episodes": "eval_games num_eval_episodes",
    "run.max_updates": "steps max_steps num_steps total_training_steps iterations",
    "run.tracker": "wandb report_to logger logging trackio",
    "run.dir": "output_dir save_dir out_dir",
    "sampling.max_tokens": (
        "max_new_tokens max_completion_length max_response_length response_length"
    ),
    "engine.max_model_len": "max_seq_len seq_len context_length max_length max_prompt_length",
    "engine.gpu_memory_fraction": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "engine.max_sequences": "max_num_seqs max_concurrent_requests",
    "engine.count": "num_engines data_parallel_size dp",
    "learner.lora_rank": "lora lora_r use_lora",
    "actor.count": "num_actors num_workers workers num_envs rollout_workers",
    "env.name": "environment environment_name env_id task",
    "model.template_arguments": "chat_template_kwargs apply_chat_template_kwargs enable_thinking",
    "model.system_prompt": "system_message system",
    "model.name": "model_path model_name model_name_or_path policy pretrained",
}
"""Our settings, as a hint names them -> names that they have elsewhere."""

ALIASES = {alias: ours for ours, aliases in SETTINGS_ELSEWHERE.items() for alias in aliases.split()}

VALUES_ELSEWHERE = {
    "learner.algorithm.type": {
        "ppo": "gae, with learner.loss ppo",
        "dapo": "grpo, with learner.filter_groups, and a learner.loss with clip_high",
        "gspo": "grpo, with learner.loss gspo",
        "cispo": "grpo, with learner.loss cispo",
        "drgrpo": "grpo, with learner.algorithm.normalize_advantages false",
        "vtrace": "gae, with learner.loss vtrace",
        "reinforce": "reinforce++",
    },
    "learner.loss.type": {
        "none": "reinforce",
        "dapo": "ppo, with a larger learner.loss.clip_high",
        "grpo": "ppo; grpo is a learner.algorithm",
    },
    "run.tracker": {"tensorboard": "none: files for TensorBoard are written in any case"},
}
"""Enumerated setting -> value elsewhere -> what it is here."""


def guess(word: str, choices: Iterable[str]) -> str:
    """Ask whether the nearest of the choices was meant; empty if none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=NEAR)
    if not near:
        return ""
    return f"; did you mean {near[0]}?"


def describe_unknown_setting(
    name: str, known: Mapping[str, msgspec.inspect.Field], where: str
) -> str:
    """Say that there is no such setting, and which one may have been meant."""
    own_name = name.rpartition(".")[2]
    meant = " or ".join(full for full in known if full.rpartition(".")[2] == own_name)
    if not meant:
        meant = ALIASES.get(own_name, "")
    hint = f"; did you mean {meant}?"
    if not meant:
        hint = guess(name, [*known, *SHORT_NAMES])
    if not hint:
        hint = f"; `{this_command()} --help all` lists all settings"
    return f"there is no setting {name} ({where}){hint}"


def describe_misfit(name: str, value: Any, message: str, field: msgspec.inspect.Field) -> str:
    """Say why a value does not fit its setting, by msgspec's message or the choices there are."""
    kind = kind_of(field)
    if isinstance(kind, msgspec.inspect.LiteralType) and isinstance(value, str):
        choices = [str(choice) for choice in kind.values]
        elsewhere = VALUES_ELSEWHERE.get(name, {}).get(value)
        hint = guess(value, choices)
        if elsewhere is not None:
            hint = f"; here it is {elsewhere}"
        return f"{name}: {value!r} is not one of {', '.join(choices)}{hint}"
    return f"{name}: {message[:1].lower()}{message[1:]}. {describe(name, field)}"


def find_misfits(tree: Mapping[str, Any], kind: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """(Name, msgspec's message) of each value of nested dictionaries that does not fit `kind`.

    msgspec tells of the first one alone. It is left out then, and the others are tried again.
    """
    rest = copy.deepcopy(dict(tree))
    while True:
        try:
            msgspec.convert(rest, kind)
        except msgspec.ValidationError as error:
            message, _, place = str(error).partition(" - at `$.")
            name = place.rstrip("`").partition("[")[0]
            yield name, message
            if not _remove(rest, name):
                return
        else:
            return


def value_at(tree: Mapping[str, Any], name: str) -> Any:
    """The value of a full name in nested dictionaries; None where there is none."""
    value: Any = tree
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _remove(tree: dict[str, Any], name: str) -> bool:
    """Remove a value from nested dictionaries, in place; False where there is none.

    Without its type, a tagged section means nothing: all of it goes.
    """
    section, _, own_name = name.rpartition(".")
    if own_name == "type" and section in tagged_sections():
        section, _, own_name = section.rpartition(".")
    parent = value_at(tree, section) if section else tree
    if not isinstance(parent, dict) or own_name not in parent:
        return False
    del parent[own_name]
    return True
