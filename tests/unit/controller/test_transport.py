"""The welcome that actors get."""

from pathlib import Path

import msgspec
import pytest

from controller.transport import build_welcome
from tests.fixtures.runs import job_in, small_config


@pytest.mark.parametrize(("host", "told"), [("0.0.0.0", ""), ("127.0.0.2", "127.0.0.2"), ("", "")])
def test_actors_are_told_no_address_of_the_learner_that_is_none(
    tmp_path: Path, small_policy: Path, host: str, told: str
):
    config = small_config(model__name=str(small_policy))
    config = msgspec.structs.replace(
        config, learner=msgspec.structs.replace(config.learner, host=host)
    )
    assert build_welcome(job_in(tmp_path / "run", config)).learner_host == told


@pytest.mark.parametrize(
    ("algorithm", "anchor_texts"),
    [
        ({"learner__algorithm": "grpo"}, False),
        ({"learner__algorithm": "gigpo"}, False),
        (
            {
                "learner__algorithm": "gigpo",
                "learner__algorithm__anchor_similarity": "0.9",
            },
            True,
        ),
    ],
)
def test_actors_send_anchors_as_texts_where_the_algorithm_compares_texts(
    tmp_path: Path, small_policy: Path, algorithm: dict[str, str], anchor_texts: bool
):
    config = small_config(model__name=str(small_policy), **algorithm)
    assert build_welcome(job_in(tmp_path / "run", config)).anchor_texts == anchor_texts
