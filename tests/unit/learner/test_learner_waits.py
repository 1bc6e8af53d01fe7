"""Words by which the learner says that it waits."""

from __future__ import annotations

from learner.data.groups import GroupBuffer
from protocol.messages import EpisodeKey, Trajectory


def played(group: int, member: int) -> Trajectory:
    """An episode without a turn."""
    key = EpisodeKey(group, member)
    return Trajectory(
        key=key, lease_attempt=0, task_index=0, task_type="", task="", success=False, turns=[]
    )


def test_batch_that_does_not_come_names_the_group_and_the_missing_episodes() -> None:
    """A batch that does not come names the group and the episodes that are missing."""
    buffer = GroupBuffer(4)
    for key in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 2)):
        buffer.add(played(*key))
    buffer.collect_complete()
    assert buffer.describe_wait(update=7, size=2) == (
        "2 groups for update 7, of which 1 are complete: group 1 lacks 3 of its 4 episodes (0, "
        "1, 3)"
    )


def test_many_missing_episodes_are_counted() -> None:
    assert (
        GroupBuffer(64)
        .describe_wait(update=1, size=1)
        .endswith("group 0 lacks 64 of its 64 episodes (0, 1, 2, 3, 4 and 59 more)")
    )
