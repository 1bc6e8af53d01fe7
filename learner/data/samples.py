"""From trajectories to what is trained on: one sample a turn, with its advantage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from config import ControlSection, LearnerSection
from learner.advantages import (
    ESTIMATORS,
    NEEDS_CRITIC,
    EpisodeReturns,
    GroupReturns,
    estimate_advantages,
    estimate_values,
)
from learner.advantages.returns import standardize
from learner.data.resampling import resampling_weight, stall_rate
from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import Span, StopReason, Trajectory, Turn

UNCONTROLLED = ControlSection(mode="off")


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One turn, as trained on: L tokens of prompt, T of response."""

    prompt: np.ndarray  # int32 [L]
    response: np.ndarray  # int32 [T]
    # bool [T]: trained on, that is chosen by the policy and with a finite behaviour log-prob; none
    # is where `learner.truncated` masks the turn
    mask: np.ndarray
    # float32 [T]: behaviour log-prob at the sampling temperature; anything where mask is false
    log_mu: np.ndarray
    # int32 [T]: versions between the weights that sampled the token and the learner's
    age: np.ndarray
    advantage: float = 0.0  # of every token of the turn
    # float32 [T]: log-prob by the policy at the start of the update, where a loss asks for it
    log_prox: np.ndarray | None = None
    # float32 [hidden]: what the value head sees of the prompt, where there is one
    features: np.ndarray | None = None
    value: float = 0.0  # by the value head, of the state that the turn began in
    target: float = 0.0  # what that value should have been

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.response)

    @property
    def trained_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def log_ratio(self) -> float:
        """Sum over the trained tokens of log(pi/mu), with pi the policy at the update's start.

        It is 0 where that is not known.
        """
        if self.log_prox is None:
            return 0.0
        return float((self.log_prox[self.mask].astype(np.float64) - self.log_mu[self.mask]).sum())

    @property
    def needs_compute(self) -> bool:
        """False where the policy gradient is known to be 0.

        Such a sample still counts in the token mean.
        """
        return self.advantage != 0.0 and bool(self.mask.any())


Annotator = Callable[[list[TrainingSample]], list[TrainingSample]]
"""Adds to each sample of a batch what models know of it."""


def build_samples(
    groups: Sequence[Sequence[Trajectory]],
    version: int,
    settings: LearnerSection,
    control: ControlSection = UNCONTROLLED,
    annotate: Annotator = list,
) -> list[TrainingSample]:
    """Make a sample of every turn of every played episode, with its advantage.

    `version`: of the learner's weights before the update.

    In control's mode `void` a turn without a valid action is left out, though its episode counts in
    the group's statistics. A turn that the response budget cut off is trained on, masked or
    penalized, as `truncated` says. Dropped episodes are left out. Raises ValueError, naming the
    episode, where a turn's arrays do not fit together.
    """
    played = _played_groups(groups)
    if not played:
        return []
    episodes = [episode for group in played for episode in group]
    turns = [turn for episode in episodes for turn in episode.turns]
    samples = annotate(_unvalued_samples(episodes, version))
    returns = _collect_returns(played, samples)
    advantages = _estimate_advantages(returns, settings)
    if settings.truncated == "penalize":
        advantages = advantages + _truncation_penalties(played, settings.truncated_penalty)
    targets = _value_targets(returns, settings)
    weights = _resampling_weights(turns, settings, control)
    return [
        replace(
            sample,
            mask=_mask_truncated(sample, turn, settings),
            advantage=float(advantage * weight),
            target=float(target),
        )
        for turn, sample, advantage, target, weight in zip(
            turns, samples, advantages, targets, weights, strict=True
        )
        if control.mode != "void" or turn.valid
    ]


def is_informative(group: Sequence[Trajectory], settings: LearnerSection) -> bool:
    """Tell whether played episodes differ in what `learner.algorithm` compares within a group.

    That is their returns; for gigpo also those of turns that saw the same. The penalty of invalid
    turns is none of that.
    """
    played = [episode for episode in group if episode.drop_reason is None]
    returns = GroupReturns([_rewards_of(episode.turns) for episode in played])
    without_penalty = msgspec.structs.replace(settings.algorithm, invalid_penalty=0.0)
    (by_episode,) = ESTIMATORS[without_penalty.type]([returns], without_penalty)
    return any(advantages.any() for advantages in by_episode)


def is_truncated(turn: Turn) -> bool:
    """Tell whether the response budget cut the kept response off."""
    return turn.kept.stop is StopReason.LENGTH


# --- the steps of build_samples


def _played_groups(groups: Sequence[Sequence[Trajectory]]) -> list[list[Trajectory]]:
    played = [[episode for episode in group if episode.drop_reason is None] for group in groups]
    return [group for group in played if group]


def _unvalued_samples(episodes: Sequence[Trajectory], version: int) -> list[TrainingSample]:
    return [
        _build_sample(episode, number, version)
        for episode in episodes
        for number in range(len(episode.turns))
    ]


def _collect_returns(
    groups: Sequence[Sequence[Trajectory]], samples: Sequence[TrainingSample]
) -> list[GroupReturns]:
    """Return what advantages are computed from: episodes, with what models know of their turns."""
    following = iter(samples)
    return [
        GroupReturns([_episode_returns(episode, following) for episode in group])
        for group in groups
    ]


def _episode_returns(episode: Trajectory, following: Iterator[TrainingSample]) -> EpisodeReturns:
    """Take an episode's samples, one a turn, from those that follow."""
    samples = [next(following) for _ in episode.turns]
    return replace(
        _rewards_of(episode.turns),
        cut_off=episode.overflowed or episode.truncated,
        values=np.array([sample.value for sample in samples]),
        log_ratios=np.array([sample.log_ratio for sample in samples]),
    )


def _rewards_of(turns: Sequence[Turn]) -> EpisodeReturns:
    return EpisodeReturns(
        rewards=np.array([turn.reward for turn in turns], dtype=np.float64),
        valid=np.array([turn.valid for turn in turns], dtype=bool),
        anchors=[turn.anchor for turn in turns],
    )


def _estimate_advantages(returns: Sequence[GroupReturns], settings: LearnerSection) -> np.ndarray:
    """Return the advantage of each turn of the batch."""
    by_group = estimate_advantages(returns, settings)
    return np.concatenate([advantages for group in by_group for advantages in group])


def _value_targets(returns: Sequence[GroupReturns], settings: LearnerSection) -> np.ndarray:
    """Return what the value of each turn's state should have been; 0 without a value head."""
    episodes = [episode for group in returns for episode in group.episodes]
    if settings.algorithm.type not in NEEDS_CRITIC:
        return np.zeros(sum(len(episode.rewards) for episode in episodes))
    return np.concatenate([estimate_values(episode, settings) for episode in episodes])


def _resampling_weights(
    turns: Sequence[Turn], settings: LearnerSection, control: ControlSection
) -> list[float]:
    """Return the factor of each turn's advantage that undoes sampling again (`resampling`)."""
    if settings.resampling != "weight":
        return [1.0] * len(turns)
    rate = stall_rate(turns)
    return [
        resampling_weight(turn, rate, control.t2po.max_resamples, settings.resampling_cap)
        for turn in turns
    ]


def _truncation_penalties(groups: Sequence[Sequence[Trajectory]], penalty: float) -> np.ndarray:
    """Put turns that the response budget cut off `penalty` below the others of their group.

    As those of turns without a valid action, penalties are centered over the group's turns: where
    all are cut off, nothing tells them apart. Returns one of each turn, float64 [sum K].
    """
    penalties = []
    for group in groups:
        turns = [turn for episode in group for turn in episode.turns]
        whole = np.array([not is_truncated(turn) for turn in turns], dtype=np.float64)
        penalties.append(penalty * standardize(whole, normalise=False))
    return np.concatenate(penalties)


def _mask_truncated(sample: TrainingSample, turn: Turn, settings: LearnerSection) -> np.ndarray:
    """Return which tokens are trained on: none of a turn that was cut off, with `mask`.

    Such a turn stays a sample, since a value head still learns of the state it began in.
    """
    if settings.truncated == "mask" and is_truncated(turn):
        return np.zeros_like(sample.mask)
    return sample.mask


# --- one turn


def _build_sample(episode: Trajectory, number: int, version: int) -> TrainingSample:
    try:
        return _unpack_turn(episode.turns[number], version)
    except ValueError as error:
        raise ValueError(f"episode {episode.key.id}, turn {number + 1}: {error}") from None


def _unpack_turn(turn: Turn, version: int) -> TrainingSample:
    response = unpack(turn.kept.tokens, INT32)
    log_mu = unpack(turn.kept.log_probs, FLOAT32)
    mask = unpack(turn.kept.mask, UINT8) > 0
    if not len(response) == len(log_mu) == len(mask):
        raise ValueError(
            f"{len(response)} tokens, {len(log_mu)} log-probs, {len(mask)} mask values"
        )
    return TrainingSample(
        prompt=unpack(turn.prompt, INT32),
        response=response,
        mask=mask & np.isfinite(log_mu),
        log_mu=log_mu,
        age=_token_ages(turn.kept.spans, len(response), version),
    )


def _token_ages(spans: Sequence[Span], tokens: int, version: int) -> np.ndarray:
    ages = np.full(tokens, -1, dtype=np.int32)
    for span in spans:
        # Negative for what weights played that a crash has lost since: no older than the newest.
        ages[span.start : span.stop] = max(0, version - span.version)
    if (ages < 0).any():
        raise ValueError(f"spans {list(spans)} leave tokens without a version")
    return ages
