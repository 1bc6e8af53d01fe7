"""Making the policy of a run: how far it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from learner.warm_start import build
from tests.fixtures.learner import job_of_tiny
from tests.fixtures.runs import job_in, small_config
from tests.fixtures.tool_environment import tool_code


def test_build_policy_reports_each_episode_that_the_tokenizer_learns_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the expert lost, too."""
    monkeypatch.setattr(build, "TOKENIZER_EPISODES", 30)
    reports: list[tuple[int, int]] = []
    job = replace(job_in(tmp_path / "run", small_config()), model_dir=str(tmp_path / "made"))
    build.build_policy(job, lambda done, total: reports.append((done, total)))
    assert reports == [(number, 30) for number in range(1, 31)]


def test_build_policy_learns_tokens_of_a_file_where_no_expert_plays(tmp_path: Path) -> None:
    line = (
        '{"messages": [{"role": "user", "content": "quince"}, '
        '{"role": "assistant", "content": "<quote>medlar</quote>"}]}\n'
    )
    (tmp_path / "chats.jsonl").write_text(20 * line)
    (tmp_path / "prices.py").write_text(tool_code())
    config = small_config(
        env=str(tmp_path / "prices.py"), warm_start__data=str(tmp_path / "chats.jsonl")
    )
    job = replace(job_of_tiny(tmp_path / "run", config), model_dir=str(tmp_path / "made"))
    build.build_policy(job)
    tokenizer = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    assert len(tokenizer.encode("quince").ids) == 1
    assert len(tokenizer.encode("<quote>").ids) == 1
