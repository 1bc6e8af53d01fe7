"""What a lease is proved by, to a shard that did not give it."""

from __future__ import annotations

import hmac
from hashlib import blake2b

from protocol.messages import EpisodeKey, TurnRequest


def permit(secret: str, actor: bytes, key: EpisodeKey, attempt: int) -> bytes:
    """16 bytes that nobody can make who does not know `secret`, which controller and shards of a
    run share."""
    return blake2b(
        f"{key.id} {attempt} ".encode() + actor, key=secret.encode(), digest_size=16
    ).digest()


def is_permitted(secret: str, actor: bytes, request: TurnRequest) -> bool:
    """Whether the actor was given the lease that it asks a turn of, some time ago."""
    return hmac.compare_digest(
        permit(secret, actor, request.key, request.lease_attempt), request.permit
    )
