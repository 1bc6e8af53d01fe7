"""Shards, as actors choose one for their turns."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.actor import choose_shard
from protocol.messages import (
    ShardAddress,
)

PLACES = st.lists(
    st.builds(ShardAddress, host=st.sampled_from(["", "a", "b"]), port=st.integers(1, 9)),
    unique=True,
    max_size=8,
)


ACTORS = [f"actor-{number}".encode() for number in range(40)]


@given(PLACES, st.data())
def test_when_a_shard_goes_only_its_actors_move_and_when_it_is_back_they_return(
    places: list[ShardAddress], data: st.DataObject
):
    before = {actor: choose_shard(actor, data.draw(st.permutations(places))) for actor in ACTORS}
    gone = data.draw(st.sampled_from(places)) if places else None
    after = {
        actor: choose_shard(actor, [place for place in places if place != gone]) for actor in ACTORS
    }
    assert all(after[actor] == before[actor] or before[actor] == gone for actor in ACTORS)


def test_controller_and_shards_have_about_as_many_actors_each():
    places = [ShardAddress(host="", port=5000 + number) for number in range(3)]
    shares = Counter(choose_shard(f"actor-{number}".encode(), places) for number in range(4000))
    assert set(shares) == {None, *places} and all(
        850 < share < 1150 for share in shares.values()
    )  # 1,000 +- 5 standard deviations
