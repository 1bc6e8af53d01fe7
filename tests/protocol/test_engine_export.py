"""A checkpoint that was exported, as vLLM and transformers load it."""

from __future__ import annotations

import pytest

from engine.constants import UNKNOWN_VERSION
from tests.fixtures.engines import OPENING, SHARED_VLLM, TOLERANCE, RealEngine, distributions


@pytest.mark.parametrize("server", [SHARED_VLLM])
def test_exported_checkpoint_generates_alike_in_vllm_and_transformers(
    server: str, real_engine: RealEngine
) -> None:
    """The first turn of a server that was given no weights comes from the exported ones."""
    opening = real_engine.opening
    assert [span.version for span in opening.spans] == [UNKNOWN_VERSION]
    expected = distributions(real_engine.model_dir, OPENING, opening.tokens)
    assert opening.tokens == expected.argmax(-1).tolist()
    assert opening.log_probs == pytest.approx(expected.amax(-1).tolist(), abs=TOLERANCE)
