"""The learner's end of vLLM's NCCL weight transfer (engine.weights nccl).

Weights go from the learner's GPU straight to the engines' GPUs.

Interface: TrainerWeightTransferEngine in vllm/distributed/weight_transfer/base.py. vLLM's trainer
would tell the engines by itself what to do; here the controller does, at the same time, since it
knows what they generate. It never ran: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from engine.constants import NCCL_PACKING


class WeightSender:
    """Rank 0 of a group of the learner and the engines' workers.

    `endpoint` (tcp://host:port) is where it waits for the others, and `engines` how many these are,
    of one worker each. The group is there from the first `send` on.
    """

    def __init__(self, endpoint: str, engines: int) -> None:
        place = urlsplit(endpoint)
        if place.hostname is None or place.port is None:
            raise ValueError(f"{endpoint} is not of the form tcp://host:port")
        self._info = NCCLTrainerInitInfo(
            place.hostname, place.port, world_size=1 + engines, rank=0, **NCCL_PACKING
        )
        self._source = _TensorSource()
        self._trainer: TrainerWeightTransferEngine | None = None

    def send(self, tensors: dict[str, torch.Tensor]) -> None:
        """Send tensors of this process's first GPU, in their order; any thread may call it.

        The engines must have been told the order.

        Returns when all engines have received them, and does not while one of them does not take
        part: whoever sees that it fails has to end this process. Raises what torch raises when the
        group cannot be formed (after five minutes, vLLM's own limit).
        """
        self._source.tensors = tensors
        if self._trainer is None:
            self._trainer = WeightTransferTrainerFactory.trainer_init(
                self._info, client=_PassiveEngines(), source=self._source
            )
        self._trainer.send_weights()


class _TensorSource(WeightSource):
    """The tensors that are sent next."""

    tensors: dict[str, torch.Tensor]

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.tensors.items())


class _PassiveEngines:
    """Engines as vLLM's trainer wants them: nothing to do, since the controller tells them."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        pass

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass
