"""GiGPO: GRPO, and below it a comparison of turns that saw the same.

Feng et al. 2025, arXiv 2505.10978, §4.2, eq. 6-8.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher

import numpy as np

from config import GigpoAlgorithm
from learner.advantages.grpo import grpo
from learner.advantages.returns import GroupReturns, standardize


def gigpo(group: GroupReturns, settings: GigpoAlgorithm) -> list[np.ndarray]:
    """Return A = A_episode + omega A_step, where omega is `step_weight`."""
    by_episode = grpo(group, settings)
    by_step = step_advantages(group, settings)
    return [
        episode + settings.step_weight * step
        for episode, step in zip(by_episode, by_step, strict=True)
    ]


def step_advantages(group: GroupReturns, settings: GigpoAlgorithm) -> list[np.ndarray]:
    """Compare each turn's discounted return with those of all turns with a similar anchor.

    A turn alone has 0. An episode may be in a cluster more than once: it came back to what it had
    seen.
    """
    returns = [discounted_returns(episode.rewards, settings.discount) for episode in group.episodes]
    anchors = [anchor for episode in group.episodes for anchor in episode.anchors]
    leaders = cluster_anchors(anchors, settings.anchor_similarity)
    clusters: dict[str, list[tuple[int, int]]] = defaultdict(list)  # leader -> (episode, turn)
    for i, episode in enumerate(group.episodes):
        for k, anchor in enumerate(episode.anchors):
            clusters[leaders[anchor]].append((i, k))
    advantages = [np.zeros(len(episode_returns)) for episode_returns in returns]
    for members in clusters.values():
        values = np.array([returns[i][k] for i, k in members])
        standardized = standardize(values, settings.normalize_advantages)
        for (i, k), value in zip(members, standardized, strict=True):
            advantages[i][k] = value
    return advantages


def cluster_anchors(anchors: Iterable[str], similarity: float) -> dict[str, str]:
    """Map each anchor to the first one before it that is similar, which may be itself.

    Two are similar if at least so much of their words is equal and in the same order (2 M / T, as
    difflib counts). Similarity is not transitive, so clusters depend on which came first. Chains of
    neighbors, which would end in one cluster, are not made.
    """
    leaders: dict[str, str] = {}
    words_of_leaders: dict[str, list[str]] = {}
    for anchor in anchors:
        if anchor in leaders:
            continue
        words = anchor.split()
        leader = _similar_leader(words, words_of_leaders, similarity)
        if leader is None:
            leader = anchor
            words_of_leaders[anchor] = words
        leaders[anchor] = leader
    return leaders


def _similar_leader(
    words: list[str], words_of_leaders: Mapping[str, list[str]], similarity: float
) -> str | None:
    """Return the first leader that is similar; None without one. At 1 only equal ones are."""
    if similarity >= 1:
        return None
    for leader, leader_words in words_of_leaders.items():
        if are_similar(words, leader_words, similarity):
            return leader
    return None


def are_similar(one: list[str], other: list[str], similarity: float) -> bool:
    """Tell whether so large a share of the words of two texts is equal."""
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return (
        matcher.real_quick_ratio() >= similarity
        and matcher.quick_ratio() >= similarity
        and matcher.ratio() >= similarity
    )


def discounted_returns(rewards: np.ndarray, discount: float) -> np.ndarray:
    """Return R_k = r_k + discount R_{k+1}, for rewards [K]."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for k in reversed(range(len(rewards))):
        following = rewards[k] + discount * following
        returns[k] = following
    return returns
