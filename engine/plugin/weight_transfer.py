"""A weight transfer backend for vLLM: weights come as one safetensors file.

It is in memory (/dev/shm) or on a shared disk.

Interface: vllm/distributed/weight_transfer/base.py. An update is start, update, finish; the client
pauses generation around it.

The file was hashed before (file_check.py), so that the engine stands still for reading it alone.
Nothing is touched before it has proved to be the one that was hashed, and of the same model: an
update that is refused leaves the old weights in place.

On CPUs vLLM packs the weights of linear layers after loading and drops the originals, and on GPUs
they may be quantized; its layerwise reload restores the layers' loadable form, and packs again. So
an update is: check the file, `initialize_layerwise_reload`, the model's own `load_weights`,
`finalize_layerwise_reload`. The same calls serve a GPU, where the file is read to the host and
copied. All of it happens in one request: between two of them the engine may go on, be it that the
client was killed, and the request may come again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from engine.plugin.file_check import FileIdentity, check_identity
from engine.plugin.verify_weights import compare_with_file
from engine.plugin.weight_file import check_tensors, tensor_shapes, tensors


def pack_tied_head(model: nn.Module) -> None:
    """Tie the language-model head to the embeddings again, and pack it again.

    The layerwise reload (vLLM 0.32) packs a layer when its own weights have arrived. A tied head
    has none in the file, so on a CPU it would go on computing with the packed copy of the
    embeddings that the engine was started with.
    """
    head = getattr(model, "lm_head", None)
    embeddings = getattr(getattr(model, "model", None), "embed_tokens", None)
    if (
        head is not None
        and embeddings is not None
        and head is not embeddings
        and getattr(model.config, "tie_word_embeddings", False)
    ):
        head.tie_weights(embeddings)
        head.quant_method.process_weights_after_loading(head)


def pack_experts(model: nn.Module) -> None:
    """Pack the experts of a model again, on a CPU.

    vLLM 0.32 packs them when it has loaded the model for the first time. After a reload it copies
    them as they come to where its kernel expects packed ones.
    """
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and module.w13_weight.device.type == "cpu":
            kernel.fused_experts.process_weights_after_loading(module)


@dataclass
class InitInfo(WeightTransferInitInfo):
    """There is nothing to set up."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """An update: a file that has been hashed, its version, and whether to compare after loading."""

    path: str
    version: int
    identity: FileIdentity
    verify: bool = False


class SafetensorsTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """The backend that is registered as `foray_safetensors` (registration.py)."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    _verify: Path | None = None  # file to compare the loaded weights with

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        """Layers are prepared only once the file is known to be good (`receive_weights`)."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load the file.

        Raises ValueError, with the weights as they were, when it is not the one that was hashed, or
        its tensors are not the model's.
        """
        path = Path(update_info.path)
        check_identity(path, update_info.identity)
        check_tensors(path, tensor_shapes(Path(self.model_config.model)))
        initialize_layerwise_reload(self.model)
        try:
            model: Any = self.model  # `nn.Module` does not declare what vLLM's models have
            model.load_weights(tensors(path))
        finally:
            finalize_layerwise_reload(self.model, self.model_config)
            pack_tied_head(self.model)
            pack_experts(self.model)
        self._verify = None
        if update_info.verify:
            self._verify = path

    def finish_weight_update(self) -> None:
        """The weights are in use already; raises ValueError when they are not those of the file."""
        if self._verify is not None:
            path = self._verify
            self._verify = None
            compare_with_file(self.model, path)

    def shutdown(self) -> None:
        pass
