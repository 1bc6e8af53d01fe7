"""Which shard an actor asks for its turns: rendezvous hashing, a consistent hash without a table.

Everybody who knows the same shards comes to the same choice; when one goes, only its actors move,
and when it is back, they return (Thaler and Ravishankar 1998, "Using name-based mappings to
increase hit rates").
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from protocol.messages import ShardAddress


def shard_of(actor: bytes, shards: Sequence[ShardAddress]) -> ShardAddress | None:
    """The one of `shards` that takes the turns of `actor`; None is the controller, which takes its
    share of the actors, too."""
    return max([None, *shards], key=lambda place: _weight(actor, place))


def _weight(actor: bytes, place: ShardAddress | None) -> bytes:
    name = b"" if place is None else f"{place.host}:{place.port}".encode()
    return blake2b(actor + b"\0" + name, digest_size=8).digest()
