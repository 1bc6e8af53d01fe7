"""Several processes that compute one update together: their numbers, their shares, their exchanges.

Rank 0 is the learner: it alone speaks ZeroMQ, and calls its `Training` on all ranks
(learner/rank_rpc.py). Each rank computes its share of the micro-batches, with weights and optimizer
sharded between them (FSDP2, learner/model/sharding.py). Who starts them sets RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does, on one machine or on several; without
these there is one rank. On a GPU that one is sharded, too: its weights are float32, and are cast to
the precision of the layers one layer at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Item = TypeVar("Item")
Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""How long other ranks wait for rank 0, which waits for episodes.

If rank 0 dies, their supervisor ends them.
"""


class Ranks:
    """Place of a process among those that share a model; `Ranks()` is a process by itself."""

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, *, is_group: bool = False
    ) -> None:
        """`local_rank`: its number on its machine, which is that of its device.

        `is_group`: the default process group is there, though it may be of one process.
        """
        self.rank = rank
        self.size = size
        self.is_group = is_group or size > 1
        self.mesh: DeviceMesh | None = None
        """All ranks in a row, between which weights are sharded."""
        self.background_group: dist.ProcessGroup | None = None
        """Group of what ranks exchange beside training: writing checkpoints."""
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", local_rank)

    @staticmethod
    def join() -> Ranks:
        """Join the ranks that the environment tells of, in the default process group."""
        is_told = "WORLD_SIZE" in os.environ
        ranks = Ranks(
            rank=int(os.environ.get("RANK", 0)),
            size=int(os.environ.get("WORLD_SIZE", 1)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            is_group=is_told or torch.cuda.is_available(),
        )
        backend = "gloo"
        if ranks.device.type == "cuda":
            torch.cuda.set_device(ranks.device)
            torch.set_float32_matmul_precision("high")  # TF32, for what is float32: the head
            backend = "cpu:gloo,cuda:nccl"
        if is_told:
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        elif ranks.is_group:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        if ranks.is_group:
            ranks.mesh = init_device_mesh(ranks.device.type, (ranks.size,))
            ranks.background_group = _new_background_group()
        return ranks

    def close(self) -> None:
        """Leave the process group."""
        if self.is_group:
            dist.destroy_process_group()

    def shard(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """Give this rank's share: every size-th of the items, and whether it counts.

        All ranks get equally many, since each forward pass is a step that they take together. A
        rank that would have none takes the last item, which does not count there.
        """
        for start in range(0, len(items), self.size):
            index = start + self.rank
            yield items[min(index, len(items) - 1)], index < len(items)

    def gather(self, results: Sequence[Result], items: int) -> list[Result]:
        """Gather the results of all `items` in their order, from those that count on each rank."""
        if self.size == 1:
            return list(results)
        by_rank: list[Any] = [None] * self.size
        dist.all_gather_object(by_rank, list(results))
        return [by_rank[i % self.size][i // self.size] for i in range(items)]

    def broadcast_object(self, value: Any) -> Any:
        """Return on every rank the value that rank 0 has."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_rank_0(self, compute: Callable[[], Result]) -> Result:
        """Return on every rank what rank 0 has computed, or raise what it raised there."""
        result: Result | None = None
        error: Exception | None = None
        if not self.rank:
            try:
                result = compute()
            except Exception as raised:
                error = raised
        result, error = self.broadcast_object((result, error))
        if error is not None:
            raise error
        return cast(Result, result)

    def barrier_beside(self) -> None:
        """Wait until all ranks are here, in what they do beside training."""
        if self.is_group:
            dist.barrier(self.background_group)


def _new_background_group() -> dist.ProcessGroup:
    """Make another group of all ranks, which exchanges what is on the host."""
    group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    if not isinstance(group, dist.ProcessGroup):
        raise RuntimeError("this rank is in no group of all ranks")
    return group
