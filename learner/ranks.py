"""Several processes that compute one update together: what each of them computes, and how they come
to know the same.

Rank 0 is the learner: it alone speaks ZeroMQ, and tells the others what it does to its `Training`;
they do the same (learner/rank_rpc.py), each on its share of the micro-batches, with weights and
optimizer sharded between them (FSDP2, learner/model/sharding.py). Who starts them sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does; without these there is one
rank.
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

PATIENCE = timedelta(days=7)
"""Others wait so long for word from rank 0, which waits for episodes; if it dies, their supervisor
ends them."""


class Ranks:
    """This process among those that share a model.

    `Ranks()` is a process by itself. `local`: its number on its machine, which is that of its
    device among those it sees.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.device = (
            torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        )

    @staticmethod
    def join() -> Ranks:
        """As the environment has it.

        The default process group is then there, if there are others.
        """
        rank, size, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        ranks = Ranks(rank, size, local)
        if size > 1:
            cuda = ranks.device.type == "cuda"
            if cuda:
                torch.cuda.set_device(ranks.device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        return ranks

    def leave(self) -> None:
        """The process group is gone."""
        if self.size > 1:
            dist.destroy_process_group()

    def mine(self, items: Sequence[Item]) -> Iterator[tuple[Item, bool]]:
        """This rank's share: every size-th of the items, and whether it counts.

        All ranks get equally many, since each forward pass is a step that they take together: who
        would have none takes the last item, which does not count there.
        """
        for start in range(0, len(items), self.size):
            at = start + self.rank
            yield items[min(at, len(items) - 1)], at < len(items)

    def gather(self, results: Sequence[Result], items: int) -> list[Result]:
        """The results of all `items`, in their order, from each rank's own (those that count)."""
        if self.size == 1:
            return list(results)
        by_rank: list[Any] = [None] * self.size
        dist.all_gather_object(by_rank, list(results))
        return [by_rank[i % self.size][i // self.size] for i in range(items)]

    def tell(self, word: Any) -> Any:
        """What rank 0 says, on every rank."""
        if self.size == 1:
            return word
        said = [word]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()
