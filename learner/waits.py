"""What the learner waits for, in words. Pure."""

from __future__ import annotations

from learner.data.groups import GroupBuffer

MEMBERS_TOLD = 5
"""How many missing episodes are told by their numbers."""


def batch_words(buffer: GroupBuffer, update: int, groups: int) -> str:
    """Why the batch of `update`, of so many groups, cannot be taken yet: who is missing from the
    oldest group that is not complete."""
    awaited = buffer.awaited()
    members = ", ".join(map(str, awaited.missing[:MEMBERS_TOLD]))
    more = len(awaited.missing) - MEMBERS_TOLD
    if more > 0:
        members += f" and {more} more"
    return (
        f"{groups} groups for update {update}, of which {buffer.complete()} are complete: group "
        f"{awaited.group} lacks "
        f"{len(awaited.missing)} of its {buffer.group_size} episodes ({members})"
    )
