"""From trajectories to what is trained on: one sample a turn, with its advantage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from config import ControlSection, LearnerSection
from learner.advantages import ESTIMATORS, NEEDS_CRITIC, EpisodeReturns, GroupReturns
from learner.advantages.gae import estimate_turns
from learner.data.resampling import stall_rate, weight
from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import Span, StopReason, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One turn, as trained on."""

    prompt: np.ndarray  # int32 [L]
    response: np.ndarray  # int32 [T]
    mask: (
        np.ndarray
    )  # bool [T]: trained on, that is chosen by the policy and with a finite behaviour log-prob
    log_mu: (
        np.ndarray
    )  # float32 [T]: behaviour log-prob at the sampling temperature; anything where mask is false
    age: (
        np.ndarray
    )  # int32 [T]: versions between the weights that sampled the token and the learner's
    advantage: float = 0.0  # of every token of the turn
    log_prox: np.ndarray | None = (
        # float32 [T]: log-prob by the policy at the start of the update, where a correction asks
        # for it
        None
    )
    features: np.ndarray | None = (
        None  # float32 [hidden]: what the value head sees of the prompt, where there is one
    )
    value: float = 0.0  # by the value head, of the state that the turn began in
    target: float = 0.0  # what that value should have been

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def trained_tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def log_ratio(self) -> float:
        """Sum over the trained tokens of log(pi/mu), with pi the policy at the start of the update;
        0 where that is not known."""
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


def episode_returns(episode: Trajectory, samples: Sequence[TrainingSample]) -> EpisodeReturns:
    """What advantages are computed from: an episode, and the samples of its turns."""
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


UNCONTROLLED = ControlSection(mode="off")


def build_samples(
    groups: Sequence[Sequence[Trajectory]],
    version: int,
    settings: LearnerSection,
    control: ControlSection = UNCONTROLLED,
    judge: Annotator = list,
) -> list[TrainingSample]:
    """Every turn of every played episode, with its advantage.

    `version`: of the learner's weights before the update.

    In control's mode `void` a turn without a valid action is left out, though its episode counts in
    the group's statistics; so is one that was cut off, with `truncated` skip. Dropped episodes are
    left out. Raises ValueError, naming the episode, where a turn's arrays do not fit together.
    """
    played = [[episode for episode in group if episode.drop_reason is None] for group in groups]
    played = [group for group in played if group]
    if not played:
        return []
    turns = [turn for group in played for episode in group for turn in episode.turns]
    judged = judge(
        [
            _sample(episode, number, version)
            for group in played
            for episode in group
            for number in range(len(episode.turns))
        ]
    )
    samples = iter(judged)
    returns = [
        GroupReturns(
            [episode_returns(episode, [next(samples) for _ in episode.turns]) for episode in group]
        )
        for group in played
    ]
    estimated = ESTIMATORS[settings.algorithm](returns, settings)
    advantages = np.concatenate([of_episode for of_group in estimated for of_episode in of_group])
    targets = _targets(returns, settings)
    weights = _weights(turns, settings, control)
    return [
        replace(sample, advantage=float(advantage * weight), target=float(target))
        for turn, sample, advantage, target, weight in zip(
            turns, judged, advantages, targets, weights, strict=True
        )
        if (turn.valid or control.mode != "void")
        and not (settings.truncated == "skip" and turn.kept.stop is StopReason.LENGTH)
    ]


def informative(group: Sequence[Trajectory], settings: LearnerSection) -> bool:
    """Whether a group's played episodes differ in what `learner.algorithm` compares within a group:
    their returns; for gigpo also those of turns that saw the same. The penalty of invalid turns is
    none of that."""
    returns = GroupReturns(
        [_rewards_of(episode.turns) for episode in group if episode.drop_reason is None]
    )
    (estimated,) = ESTIMATORS[settings.algorithm](
        [returns], msgspec.structs.replace(settings, invalid_penalty=0.0)
    )
    return any(advantages.any() for advantages in estimated)


def _targets(returns: Sequence[GroupReturns], settings: LearnerSection) -> np.ndarray:
    """What the value of each turn's state should have been; 0 without a value head."""
    episodes = [episode for group in returns for episode in group.episodes]
    known = settings.algorithm in NEEDS_CRITIC
    return np.concatenate(
        [
            estimate_turns(episode, settings).targets if known else np.zeros(len(episode.rewards))
            for episode in episodes
        ]
    )


def _weights(
    turns: Sequence[Turn], settings: LearnerSection, control: ControlSection
) -> list[float]:
    """Of each turn's advantage: `resampling`."""
    if settings.resampling != "weight":
        return [1.0] * len(turns)
    rate = stall_rate(turns)
    return [weight(turn, rate, control.max_resamples, settings.tis_cap) for turn in turns]


def _sample(episode: Trajectory, number: int, version: int) -> TrainingSample:
    turn = episode.turns[number]
    try:
        return _sample_of(turn, version)
    except ValueError as error:
        raise ValueError(f"episode {episode.key.id}, turn {number}: {error}") from None


def _sample_of(turn: Turn, version: int) -> TrainingSample:
    kept = turn.kept
    response = unpack(kept.tokens, INT32)
    log_mu = unpack(kept.log_probs, FLOAT32)
    mask = unpack(kept.mask, UINT8) > 0
    if not len(response) == len(log_mu) == len(mask):
        raise ValueError(
            f"{len(response)} tokens, {len(log_mu)} log-probs, {len(mask)} mask values"
        )
    return TrainingSample(
        prompt=unpack(turn.prompt, INT32),
        response=response,
        mask=mask & np.isfinite(log_mu),
        log_mu=log_mu,
        age=_ages(kept.spans, len(response), version),
    )


def _ages(spans: Sequence[Span], tokens: int, version: int) -> np.ndarray:
    age = np.full(tokens, -1, dtype=np.int32)
    for span in spans:
        # Negative for what weights played that a crash has lost since: no older than the newest.
        age[span.start : span.stop] = max(0, version - span.version)
    if (age < 0).any():
        raise ValueError(f"spans {list(spans)} leave tokens without a version")
    return age
