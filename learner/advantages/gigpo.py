"""GiGPO: GRPO, and below it a comparison of turns that saw the same (Feng et al. 2025, arXiv
2505.10978, §4.2, eq. 6-8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from difflib import SequenceMatcher

import numpy as np

from config import LearnerSection
from learner.advantages.grpo import grpo
from learner.advantages.returns import GroupReturns, standardize


def gigpo(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """A = A_episode + omega A_step; omega is `step_weight`."""
    steps = step_advantages(group, settings)
    return [
        episode + settings.step_weight * step
        for episode, step in zip(grpo(group, settings), steps, strict=True)
    ]


def step_advantages(group: GroupReturns, settings: LearnerSection) -> list[np.ndarray]:
    """Each turn's discounted return, against those of all turns of the group with the same anchor,
    or a similar one. A turn alone: 0.

    An episode may be in a cluster more than once: it came back to what it had seen.
    """
    returns = [discounted(episode.rewards, settings.discount) for episode in group.episodes]
    leaders = cluster_anchors(
        [anchor for episode in group.episodes for anchor in episode.anchors],
        settings.anchor_similarity,
    )
    clusters: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, episode in enumerate(group.episodes):
        for k, anchor in enumerate(episode.anchors):
            clusters[leaders[anchor]].append((i, k))
    advantages = [np.zeros(len(r)) for r in returns]
    for members in clusters.values():
        values = standardize(np.array([returns[i][k] for i, k in members]), settings.normalise)
        for (i, k), value in zip(members, values, strict=True):
            advantages[i][k] = value
    return advantages


def cluster_anchors(anchors: Iterable[str], similarity: float) -> dict[str, str]:
    """Anchor -> the first one before it that is similar, which may be itself.

    Similar: at least so much of their words is equal and in the same order (2 M / T, as difflib
    counts). Similarity is not transitive, so that clusters depend on which came first; chains of
    neighbours, which would end in one cluster, are not made.
    """
    leaders: dict[str, str] = {}
    words: dict[str, list[str]] = {}  # of those that lead
    for anchor in anchors:
        if anchor not in leaders:
            own = anchor.split()
            near = (
                (other for other, theirs in words.items() if similar(own, theirs, similarity))
                if similarity < 1
                else iter(())
            )
            leaders[anchor] = next(near, anchor)
            if leaders[anchor] == anchor:
                words[anchor] = own
    return leaders


def similar(one: list[str], other: list[str], similarity: float) -> bool:
    """Whether so large a share of the words of two texts is equal."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return (
        matcher.real_quick_ratio() >= similarity
        and matcher.quick_ratio() >= similarity
        and matcher.ratio() >= similarity
    )


def discounted(rewards: np.ndarray, discount: float) -> np.ndarray:
    """R_k = r_k + discount R_{k+1}, for rewards [K]."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for k in reversed(range(len(rewards))):
        following = rewards[k] + discount * following
        returns[k] = following
    return returns
