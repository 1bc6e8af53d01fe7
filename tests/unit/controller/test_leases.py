"""Signatures of leases, by which a shard knows which turns it may take."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from controller.leases import sign_lease, verify_lease
from protocol.messages import (
    EpisodeKey,
    TurnRequest,
)


@given(st.binary(max_size=40), st.integers(0, 5), st.integers(0, 5), st.binary(max_size=40))
def test_a_permit_is_of_one_actor_and_one_lease(
    actor: bytes, member: int, attempt: int, other: bytes
):
    key = EpisodeKey(0, member)
    secret = "a secret"
    request = TurnRequest(
        key=key,
        lease_attempt=attempt,
        turn_index=0,
        prompt=b"",
        permit=sign_lease(secret, actor, key, attempt),
    )
    assert verify_lease(secret, actor, request)
    assert not verify_lease("another", actor, request) and verify_lease(secret, other, request) == (
        other == actor
    )
    for changed in (
        {"lease_attempt": attempt + 1},
        {"key": EpisodeKey(0, member, True)},
        {"permit": b""},
        {"permit": other},
    ):
        assert not verify_lease(secret, actor, msgspec.structs.replace(request, **changed))
