"""Leases on their way: granted against credits, and signed.

By the signature a shard knows a lease that it did not give.
"""

from __future__ import annotations

import hmac
import time
from hashlib import blake2b
from typing import Protocol

from msgspec.structs import replace

from controller.admission import Admission, CreditQueue
from controller.shard_registry import ShardRegistry
from controller.transport import RouterSocket
from protocol.messages import EpisodeKey, TurnRequest


class LeaseBook(Protocol):
    """Knows which leases are in force: the controller's admission, or a shard's signed leases."""

    def allows(self, actor: bytes, request: TurnRequest) -> bool:
        """True while the actor has a lease in force for the turn that it asks for."""
        ...


class SignedLeases:
    """The leases that a shard may answer turns of: those that are signed, and not revoked."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._revoked: set[tuple[EpisodeKey, int]] = set()

    def revoke(self, key: EpisodeKey, lease_attempt: int) -> None:
        self._revoked.add((key, lease_attempt))

    def allows(self, actor: bytes, request: TurnRequest) -> bool:
        """True while the actor has a lease in force for the turn that it asks for."""
        if (request.key, request.lease_attempt) in self._revoked:
            return False
        return verify_lease(self._secret, actor, request)


class LeaseGranter:
    """Grants leases against credits, first come, first served."""

    def __init__(
        self, admission: Admission, shards: ShardRegistry, actors: RouterSocket, secret: str
    ) -> None:
        self.credits = CreditQueue()
        self._admission = admission
        self._shards = shards
        self._actors = actors
        self._secret = secret

    async def grant(self) -> None:
        """Send leases as long as there are credits and episodes.

        The learner's weights must be in the engines.
        """
        if self._shards.version < 0:
            return
        while self.credits:
            actor = self.credits.first()
            lease = self._admission.lease(actor, time.monotonic())
            if lease is None:
                return
            self.credits.pop()
            permit = sign_lease(self._secret, actor, lease.key, lease.lease_attempt)
            await self._actors.send(actor, replace(lease, permit=permit))


def sign_lease(secret: str, actor: bytes, key: EpisodeKey, lease_attempt: int) -> bytes:
    """Sign a lease: 16 bytes that nobody can make who does not know `secret`.

    Controller and shards of a run share it.
    """
    text = f"{key.id} {lease_attempt} ".encode() + actor
    return blake2b(text, key=secret.encode(), digest_size=16).digest()


def verify_lease(secret: str, actor: bytes, request: TurnRequest) -> bool:
    """True if the actor was given the lease that it asks a turn of, some time ago."""
    permit = sign_lease(secret, actor, request.key, request.lease_attempt)
    return hmac.compare_digest(permit, request.permit)
