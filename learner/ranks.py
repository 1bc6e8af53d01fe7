"""Several processes that compute one update together: their numbers, their shares, their exchanges.

Rank 0 is the learner: it alone speaks ZeroMQ, and calls its `Training` on all ranks
(learner/rank_rpc.py). Each rank computes its share of the micro-batches, with weights and optimizer
sharded between them (FSDP2, learner/model/sharding.py). Who starts them sets RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does; without these there is one rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")
Result = TypeVar("Result")

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""How long other ranks wait for rank 0, which waits for episodes.

If rank 0 dies, their supervisor ends them.
"""


class Ranks:
    """Place of a process among those that share a model; `Ranks()` is a process by itself."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        """`local_rank`: its number on its machine, which is that of its device."""
        self.rank = rank
        self.size = size
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", local_rank)

    @staticmethod
    def join() -> Ranks:
        """Join the ranks that the environment tells of, in the default process group."""
        ranks = Ranks(
            rank=int(os.environ.get("RANK", 0)),
            size=int(os.environ.get("WORLD_SIZE", 1)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        )
        if ranks.size > 1:
            backend = "gloo"
            if ranks.device.type == "cuda":
                torch.cuda.set_device(ranks.device)
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        return ranks

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
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

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()
