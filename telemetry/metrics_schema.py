"""Every number in metrics.jsonl: its meaning, unit, group in TensorBoard, and aggregation.

One table. A number that is not in it is kept all the same (group "other", aggregation "latest"),
but everything this project's own processes send is documented here, and a test holds that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Aggregation = Literal["value", "latest", "mean", "peak", "total"]
"""How a number gets into the line of an update:

value   the update or evaluation message carries it
latest  the last gauge before the update
mean    the mean of the gauges since the update before
peak    the largest gauge since the update before
total   counted: a gauge with the count since its process started, or an update message with the
        update's own share. The line has the share of the update as NAME and the count since the
        run started as NAME_total. Where both are sent, the gauge holds: it counts everything, a
        batch only what was trained on.
"""


class Metric(NamedTuple):
    """One number of metrics.jsonl."""

    unit: str
    group: str
    aggregation: Aggregation
    description: str


METRICS: dict[str, Metric] = {
    # --- where we are
    "update": Metric(
        "1", "run", "value", "Updates of the policy so far; 0 is the policy before training"
    ),
    "wall_seconds": Metric(
        "s", "run", "value", "Since the run started, the time before a resume included"
    ),
    "version": Metric("1", "run", "latest", "Weight version that every engine runs"),
    # --- how good the policy is
    "episodes": Metric(
        "1", "policy", "total", "Episodes in the batch (evaluation: held-out games played)"
    ),
    "tasks": Metric(
        "1", "policy", "value", "Tasks that an evaluation played, each eval.samples times"
    ),
    "unplayed": Metric(
        "1",
        "policy",
        "value",
        "Episodes of an evaluation that were dropped, and count for nothing",
    ),
    "groups": Metric("1", "policy", "value", "Groups in the batch"),
    "success": Metric(
        "share",
        "policy",
        "value",
        "Episodes that reached their goal (evaluation: mean over its tasks)",
    ),
    "success_low": Metric(
        "share", "policy", "value", "Lower end of the 95 % interval of an evaluation's success"
    ),
    "success_high": Metric(
        "share", "policy", "value", "Upper end of the 95 % interval of an evaluation's success"
    ),
    "reward": Metric(
        "1", "policy", "value", "Mean return of an episode, as the environment gives it"
    ),
    "turns": Metric("turns", "policy", "value", "Mean turns of an episode"),
    "overflowed_share": Metric(
        "share",
        "policy",
        "value",
        "Episodes that ended unsolved since their next prompt did not fit the context",
    ),
    "cut_off_share": Metric(
        "share",
        "policy",
        "value",
        "Episodes that ended before the task did: these, and those out of turns",
    ),
    "rewritten_share": Metric(
        "share",
        "policy",
        "value",
        "Episodes in which the chat template rewrote what was said (model.past_thoughts)",
    ),
    "valid_action_rate": Metric(
        "share", "policy", "value", "Turns whose action had the right form and was possible"
    ),
    "response_tokens": Metric("tokens", "policy", "value", "Mean length of a response"),
    "thinking_tokens": Metric(
        "tokens", "policy", "value", "Mean length of the thinking in a response"
    ),
    "truncated_share": Metric(
        "share", "policy", "value", "Turns that ended because the response budget ran out"
    ),
    "entropy": Metric(
        "nats", "policy", "value", "Mean entropy of the policy over the trained tokens"
    ),
    # --- which tasks are played (env.curriculum_half_life)
    "curriculum_tasks": Metric(
        "1", "curriculum", "latest", "Tasks that the curriculum knows from recent episodes"
    ),
    "curriculum_known_share": Metric(
        "share", "curriculum", "latest", "Admitted groups whose task was known when it was drawn"
    ),
    "curriculum_success": Metric(
        "share",
        "curriculum",
        "latest",
        "Success expected of the admitted groups' tasks when they were drawn; 0.5 of unknown ones",
    ),
    # --- tokens and control
    "generated_tokens": Metric(
        "tokens",
        "tokens",
        "total",
        "Sampled by the engines, evaluation and rejected attempts included",
    ),
    "evaluation_tokens": Metric(
        "tokens", "tokens", "total", "Sampled by the engines for evaluation"
    ),
    "training_tokens": Metric(
        "tokens",
        "tokens",
        "value",
        "Generated for the batches so far, rejected attempts included (run.max_tokens)",
    ),
    "trained_tokens": Metric("tokens", "tokens", "total", "With mask 1, in the update's batch"),
    "wasted_tokens": Metric(
        "tokens", "tokens", "total", "Sampled and thrown away in a turn: the next two together"
    ),
    "wasted_rejected": Metric("tokens", "tokens", "total", "In attempts that were rejected"),
    "wasted_late": Metric(
        "tokens",
        "tokens",
        "total",
        "Past a cut, from an engine whose stream of log-probs is watched",
    ),
    "wasted_dropped": Metric(
        "tokens",
        "tokens",
        "total",
        "In episodes that were not trained on (dropped_... counts them)",
    ),
    "unscored_tokens": Metric(
        "tokens",
        "tokens",
        "total",
        "Chosen by the policy, but without a log-prob (vLLM's -9999): not trained on",
    ),
    "interventions": Metric("1", "control", "total", "Times thinking was cut"),
    "resamples": Metric("1", "control", "total", "Times a turn was sampled again"),
    "early_stalls": Metric(
        "1",
        "control",
        "total",
        "Attempts ended early, since they were all but certain to be stalled",
    ),
    "repetitions": Metric(
        "1", "control", "total", "Attempts sampled again because they repeated themselves"
    ),
    "epsilon": Metric(
        "1",
        "control",
        "latest",
        "Change of the uncertainty below which thinking is cut; none while it is being calibrated",
    ),
    "eta": Metric(
        "1",
        "control",
        "latest",
        "Change from turn to turn below which a turn is sampled again; none while calibrating",
    ),
    "signal_frames": Metric("1", "control", "total", "Frames of per-token signals that arrived"),
    # --- how old the data is, how far the policy has moved from it
    "token_age_mean": Metric(
        "versions",
        "staleness",
        "value",
        "Mean age of a trained token: learner's version less its own",
    ),
    "token_age_max": Metric("versions", "staleness", "value", "Age of the oldest trained token"),
    "token_age0_share": Metric("share", "staleness", "value", "Trained tokens of age 0"),
    "ratio_mean": Metric(
        "1", "correction", "value", "Mean importance ratio, learner over engine, before truncation"
    ),
    "ratio_p01": Metric("1", "correction", "value", "1st percentile of the importance ratio"),
    "ratio_p50": Metric("1", "correction", "value", "Median of the importance ratio"),
    "ratio_p99": Metric("1", "correction", "value", "99th percentile of the importance ratio"),
    "ratio_max": Metric("1", "correction", "value", "Largest importance ratio"),
    "ratio_age0_p99": Metric(
        "1", "correction", "value", "99th percentile over tokens of age 0: numerical mismatch"
    ),
    "ratio_old_p99": Metric(
        "1", "correction", "value", "99th percentile over older tokens: staleness"
    ),
    "mismatch_age0": Metric("nats", "correction", "value", "Mean |log ratio| over tokens of age 0"),
    "effective_sample_size": Metric(
        "share",
        "correction",
        "value",
        "(sum w)^2 / (N sum w^2) of the importance weights before truncation",
    ),
    "masked_share": Metric(
        "share", "correction", "value", "Trained tokens that the correction left out"
    ),
    "kl_reference": Metric(
        "nats",
        "correction",
        "value",
        "KL(policy || reference) per token, by (pi/mu) k3, where there is a reference",
    ),
    "clip_fraction": Metric(
        "share", "correction", "value", "Tokens whose ratio was clipped or truncated"
    ),
    "kl": Metric(
        "nats", "correction", "value", "Mean of r - 1 - log r (k3), learner against engine"
    ),
    "kl_age0": Metric(
        "nats", "correction", "value", "Mean of r - 1 - log r (k3) over tokens of age 0"
    ),
    "kl_old": Metric("nats", "correction", "value", "Mean of r - 1 - log r (k3) over older tokens"),
    "kl_k1": Metric("nats", "correction", "value", "Mean of -log r (k1), learner against engine"),
    # --- exploration (docs/measurements/exploration.md)
    "coverage_states": Metric(
        "1/1,000 tokens",
        "exploration",
        "value",
        "Distinct states of the batch for 1,000 generated tokens",
    ),
    "coverage_pairs": Metric(
        "1/1,000 tokens",
        "exploration",
        "value",
        "Distinct (state, action) pairs of the batch for 1,000 generated tokens",
    ),
    "known_states": Metric(
        "states", "exploration", "value", "Distinct states since the run started"
    ),
    "known_pairs": Metric(
        "pairs", "exploration", "value", "Distinct (state, action) pairs since the run started"
    ),
    "novel_states": Metric(
        "share",
        "exploration",
        "value",
        "Of the batch's distinct states, never seen before in the run",
    ),
    "novel_pairs": Metric(
        "share",
        "exploration",
        "value",
        "Of the batch's distinct (state, action) pairs, never seen before in the run",
    ),
    "repeated_states": Metric(
        "share",
        "exploration",
        "value",
        "Turns, but for first ones, in a state that the episode had been in before",
    ),
    "repeated_pairs": Metric(
        "share",
        "exploration",
        "value",
        "Turns, but for first ones, that did what the episode had done there before",
    ),
    "first_actions": Metric(
        "share", "exploration", "value", "Distinct first actions of a group, over its episodes"
    ),
    "distinct_paths": Metric(
        "share",
        "exploration",
        "value",
        "Distinct sequences of actions of a group, over its episodes",
    ),
    "informative_share": Metric(
        "share", "exploration", "value", "Groups whose returns differ: the others teach little"
    ),
    "gamma_p10": Metric(
        "1",
        "exploration",
        "value",
        "10th percentile of Gamma, the change of a turn's score from the turn before",
    ),
    "gamma_p50": Metric("1", "exploration", "value", "Median of Gamma"),
    "gamma_p90": Metric("1", "exploration", "value", "90th percentile of Gamma"),
    "stalled_share": Metric(
        "share", "exploration", "value", "Turns with a Gamma of which an attempt was stalled"
    ),
    "flat_thinking": Metric(
        "share",
        "exploration",
        "value",
        "Thinking tokens after the last change of M_t: that thinking did not matter",
    ),
    "rejected_share": Metric(
        "share", "exploration", "value", "Generated tokens in rejected attempts"
    ),
    "forced_share": Metric(
        "share", "exploration", "value", "Generated tokens that the controller chose"
    ),
    "successes_per_million": Metric(
        "1/1,000,000 tokens",
        "exploration",
        "value",
        "Episodes that reached their goal, for so many tokens",
    ),
    # --- the optimizer
    "loss": Metric("1", "learner", "value", "Policy loss, token mean over the batch"),
    "value_loss": Metric(
        "1",
        "learner",
        "value",
        "Mean squared error of the value head, before it learns from the batch (gae)",
    ),
    "explained_variance": Metric(
        "share",
        "learner",
        "value",
        "Of the value head's targets, by its values: 1 - Var(error) / Var(target)",
    ),
    "grad_norm": Metric(
        "1",
        "learner",
        "value",
        "Norm of the gradient before clipping, mean over the optimizer steps",
    ),
    "learning_rate": Metric("1", "learner", "value", "Step size at the last optimizer step"),
    "rolled_back_to": Metric(
        "1",
        "learner",
        "value",
        "Update whose checkpoint training went back to after this one (learner.rollback)",
    ),
    "optimizer_steps": Metric("1", "learner", "value", "Optimizer steps of the update"),
    "skipped_steps": Metric(
        "1", "learner", "value", "Optimizer steps left out because the gradient was not finite"
    ),
    "computed_turns_share": Metric(
        "share",
        "learner",
        "value",
        "Turns that went through the model: the others have no advantage",
    ),
    "turns_per_row": Metric(
        "1",
        "learner",
        "value",
        "Turns in a row of the learner: more than 1 where prompts go on where the last turn ended",
    ),
    "padding_share": Metric("share", "learner", "value", "Computed positions that were padding"),
    "advantage_std": Metric(
        "1", "learner", "value", "Standard deviation of the advantages over turns"
    ),
    # --- where time goes
    "seconds_wait": Metric("s", "time", "value", "The learner waited for trajectories"),
    "seconds_train": Metric("s", "time", "value", "Forward, backward and optimizer"),
    "seconds_publish": Metric(
        "s",
        "time",
        "value",
        "Between two updates: copying the weights, writing a checkpoint if one is due",
    ),
    "seconds_write": Metric(
        "s",
        "time",
        "value",
        "Writing the weights of an earlier update to a file, beside the training",
    ),
    "published_bytes": Metric("bytes", "time", "value", "Size of the last file of weights"),
    "seconds_pause": Metric("s", "time", "total", "Engines stood still for a weight update"),
    "seconds_sleep": Metric(
        "s",
        "time",
        "value",
        "Engines gave a shared GPU's memory up before the update, and got it back",
    ),
    "idle_share_engine": Metric("share", "time", "mean", "Of the time, with no turn in any engine"),
    "idle_share_learner": Metric(
        "share", "time", "value", "Of the update's seconds, spent waiting for trajectories"
    ),
    "generated_tokens_per_second": Metric(
        "tokens/s", "time", "value", "Generated since the update before, per second"
    ),
    "trained_tokens_per_second": Metric(
        "tokens/s", "time", "value", "Trained on in the update, per second since the update before"
    ),
    # --- queues and loops
    "queue_trajectories": Metric(
        "episodes", "queues", "latest", "Finished episodes in the learner, not yet trained on"
    ),
    "queue_leases": Metric("1", "queues", "latest", "Admitted episodes that no actor has yet"),
    "episodes_in_flight": Metric(
        "1",
        "queues",
        "latest",
        "Episodes that actors have, until the learner has acknowledged them",
    ),
    "queue_weights": Metric(
        "1",
        "queues",
        "latest",
        "Published weights, and evaluations, that the controller has not begun with",
    ),
    "slots_taken": Metric("1", "queues", "latest", "Groups admitted and not yet given back"),
    "turns_in_flight": Metric("1", "queues", "latest", "Turns in the engines"),
    "engines": Metric("1", "queues", "latest", "Engines that answer and run the newest weights"),
    "actors": Metric("1", "queues", "latest", "Actors connected"),
    "loop_lag_controller": Metric(
        "s", "loops", "peak", "Longest delay of the controller's event loop"
    ),
    "loop_lag_learner": Metric("s", "loops", "peak", "Longest delay of the learner's event loop"),
    "loop_lag_actors": Metric("s", "loops", "peak", "Longest delay of any actor's event loop"),
    "loop_lag_supervisor": Metric(
        "s", "loops", "peak", "Longest delay of the supervisor's event loop"
    ),
    "bad_frames": Metric("1", "loops", "total", "Messages that could not be read"),
    # --- episodes that were not trained on
    "dropped_env_error": Metric("1", "dropped", "total", "The environment failed"),
    "dropped_engine_error": Metric("1", "dropped", "total", "The engine failed"),
    "dropped_stale": Metric("1", "dropped", "total", "Too old to be trained on"),
    "dropped_uninformative": Metric(
        "1", "dropped", "total", "The returns of its group are all equal (learner.filter_groups)"
    ),
    "dropped_canceled": Metric(
        "1", "dropped", "total", "Its group could not be completed, or the run ended"
    ),
    "dropped_actor_lost": Metric("1", "dropped", "total", "Its actors died too often"),
}

TOTAL_SUFFIX = "_total"

EVALUATION_METRICS = ("tasks", "unplayed", "success_low", "success_high")
"""Numbers that records of evaluations alone have."""

SET_PREFIX = "eval/"
"""Begin of the names of an evaluation set's figures: eval/SET/NAME."""


def find_metric(name: str) -> Metric | None:
    """The metric called `name`; None when undocumented.

    Derived ones are NAME_total, NAME/age<versions>, success/<task type>, score/<name>,
    pass_at/<samples> and eval/<set>/NAME.
    """
    if name in METRICS:
        return METRICS[name]
    counted = METRICS.get(name.removesuffix(TOTAL_SUFFIX))
    if counted is not None and counted.aggregation == "total":
        return counted._replace(description=f"{counted.description}; since the run started")
    if name.startswith(SET_PREFIX):
        return _find_metric_of_set(name)
    head, _, kind = name.partition("/")
    if not kind:
        return None
    if kind.startswith("age") and head in METRICS:
        description = f"{METRICS[head].description}; of tokens {kind[3:]} versions old"
        return METRICS[head]._replace(group="exploration_by_age", description=description)
    if head == "success":
        description = f"Episodes of type {kind} that reached their goal"
        return METRICS["success"]._replace(description=description)
    if head == "score":
        description = f"Mean over the episodes of {kind}, which the environment reports"
        return Metric("1", "policy", "value", description)
    if head == "pass_at":
        description = f"Tasks that one of {kind} samples solves (unbiased estimate)"
        return Metric("share", "policy", "value", description)
    return None


def split_set(name: str) -> tuple[str, str]:
    """The evaluation set that a number is of, "" for none, and the number's name without it."""
    if not name.startswith(SET_PREFIX):
        return "", name
    set_name, _, inner = name.removeprefix(SET_PREFIX).partition("/")
    return set_name, inner


def _find_metric_of_set(name: str) -> Metric | None:
    set_name, inner = split_set(name)
    metric = find_metric(inner)
    if metric is None:
        return None
    return metric._replace(description=f"{metric.description}; of the evaluation set {set_name}")


def successes_by_set(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """The success of each named set, from the record of an evaluation, in the sets' order."""
    successes = {}
    for name, value in evaluation.items():
        set_name, inner = split_set(name)
        if set_name and inner == "success":
            successes[set_name] = value
    return successes


def aggregation_of(name: str) -> Aggregation:
    """How a gauge called `name` gets into an update's line."""
    if name not in METRICS:
        return "latest"
    return METRICS[name].aggregation


def success_interval(evaluation: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of an evaluation's success, as its record has it; None without one."""
    low = evaluation.get("success_low")
    high = evaluation.get("success_high")
    if low is None or high is None:
        return None
    return low, high


def tensorboard_tag(name: str, kind: str = "update") -> str:
    """The tag of a number in TensorBoard and trackers: `group/name`, `evaluation/name`.

    That of a set's is `evaluation/set/name`.

    `kind` is that of the record that has the number.
    """
    if kind == "evaluation":
        return f"evaluation/{name.removeprefix(SET_PREFIX)}"
    metric = find_metric(name)
    if metric is None:
        return f"other/{name}"
    return f"{metric.group}/{name}"


def undocumented_names(names: list[str]) -> list[str]:
    """Those of `names` that METRICS does not explain."""
    return [name for name in names if find_metric(name) is None]
