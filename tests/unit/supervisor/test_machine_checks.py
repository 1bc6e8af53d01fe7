"""What a run is refused for before anything starts: room for weights, checkpoints, files, cache."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import ConfigError
from learner.publish import KEPT
from learner.warm_start.policy_cache import check_cache_dir
from protocol.machine import (
    computes_on_gpus,
)
from supervisor import job, machine_checks
from tests.fixtures.runs import small_config

MIB = 2**20


def free_in(monkeypatch: pytest.MonkeyPatch, megabytes: dict[str, int]) -> None:
    monkeypatch.setattr(
        machine_checks, "free_bytes", lambda place: megabytes.get(str(place), 1000) * MIB
    )


def test_weights_go_where_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    free_in(monkeypatch, {"/dev/shm": 64})
    assert machine_checks.choose_weights_parent("", 60 * MIB, tmp_path / "run") == Path("/dev/shm")
    assert machine_checks.choose_weights_parent("", 120 * MIB, tmp_path / "run") == tmp_path


def test_weights_that_are_not_in_memory_are_explained_unless_they_were_put_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free_in(monkeypatch, {"/dev/shm": 64})
    explain = machine_checks.explain_weights_place
    said = explain("", tmp_path / "foray-weights-1")
    place = tmp_path / "foray-weights-1"
    assert said.startswith(f"published weights: {place}, since /dev/shm has ")
    assert "64 MB free" in said
    assert explain("", Path("/dev/shm/foray-weights-1")) == ""
    assert explain(str(tmp_path), tmp_path / "foray-weights-1") == ""


def test_too_little_room_for_weights_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free_in(monkeypatch, {str(tmp_path): 100})
    with pytest.raises(
        ConfigError,
        match=r"run\.weights_dir: 4 versions of the weights need 120 MB, and .* has 100 MB",
    ):
        machine_checks.choose_weights_parent(str(tmp_path), 120 * MIB, tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"run\.weights_dir: .* need 5,000 MB, and /dev/shm has 1,000 MB"
    ):
        machine_checks.choose_weights_parent("", 5000 * MIB, tmp_path / "run")


def test_the_room_for_weights_is_of_all_versions_that_are_there_at_once(small_policy: Path) -> None:
    size = (small_policy / "model.safetensors").stat().st_size
    parameters = machine_checks.policy_parameters(small_config().model, small_policy)
    for dtype, share in (("float32", 1.0), ("bfloat16", 0.5)):
        needed = machine_checks.weights_bytes(small_config(engine__dtype=dtype), parameters)
        assert needed == pytest.approx((KEPT + 2) * size * share, rel=0.02)


def test_too_little_room_for_checkpoints_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free_in(monkeypatch, {str(tmp_path): 31})
    keep_one = small_config(
        learner__keep_checkpoints="1", run__max_updates="1000", learner__kl_coef="0.1"
    )
    machine_checks.check_checkpoints(keep_one, tmp_path, parameters=MIB // 2)
    with pytest.raises(ConfigError, match=r"run\.dir: 2 checkpoints need about 32 MB"):
        machine_checks.check_checkpoints(keep_one, tmp_path, parameters=MIB)
    machine_checks.check_checkpoints(keep_one, tmp_path, parameters=MIB, written=1)


@pytest.mark.parametrize(
    ("keep", "every", "updates", "expected"),
    [
        ("5", "0", "1000", 6),
        ("5", "0", "20", 3),
        ("0", "0", "100", 7),
        ("0", "0", "0", 2),
        ("5", "20", "0", 2),
    ],
    ids=["kept", "made in all", "all are kept", "unbounded", "unbounded, with every so many"],
)
def test_checkpoints_take_the_room_of_those_that_are_kept(
    keep: str, every: str, updates: str, expected: int
) -> None:
    config = small_config(
        learner__keep_checkpoints=keep,
        learner__keep_every=every,
        run__max_updates=updates,
        learner__checkpoint_every="20",
    )
    assert machine_checks.checkpoints_on_disk(config) == expected


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({}, 3),
        ({"learner__kl_coef": "0.1"}, 4),
        ({"learner__lora_rank": "8"}, 1),
        ({"learner__lora_rank": "8", "learner__kl_coef": "0.1"}, 2),
    ],
)
def test_a_checkpoint_of_adapters_holds_no_moments_of_the_whole_policy(
    settings: dict[str, str], copies: int
) -> None:
    assert machine_checks.copies_in_checkpoint(small_config(**settings).learner) == copies


def test_too_few_open_files_name_the_setting() -> None:
    config = small_config(actor__count="1000", actor__episodes_per_actor="3")
    machine_checks.check_open_files(config, 4256)
    with pytest.raises(
        ConfigError, match=r"actor\.count: 1000 actors of 3 episodes need 4,256 open files"
    ):
        machine_checks.check_open_files(config, 4255)


def test_a_cache_that_cannot_be_made_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"run\.cache_dir: /proc/cache cannot be made"):
        machine_checks.check_cache(small_config(run__cache_dir="/proc/cache"))
    monkeypatch.setattr(
        Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home"))
    )
    with pytest.raises(ConfigError, match=r"run\.cache_dir: there is no home directory \(HOME\)"):
        machine_checks.check_cache(small_config())


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """While inside, this process may not write where its owner may not (root always may)."""
    root = os.getuid() == 0
    if root:
        os.setreuid(12345, -1)
    try:
        yield
    finally:
        if root:
            os.setreuid(0, -1)


def test_a_cache_that_cannot_be_written_to_is_used_if_there_is_something_in_it(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o555)
    config = small_config(run__cache_dir=str(tmp_path))
    with (
        without_privileges(),
        pytest.raises(ConfigError, match=r"run\.cache_dir: .* cannot be written to"),
    ):
        machine_checks.check_cache(config)
    tmp_path.chmod(0o755)
    (tmp_path / "policy-0123").mkdir()
    tmp_path.chmod(0o555)
    with without_privileges():
        machine_checks.check_cache(config)
        with pytest.raises(
            ConfigError, match=r"run\.cache_dir: .* does not hold this warm start \(policy-4567\)"
        ):
            check_cache_dir(tmp_path / "policy-4567")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_used_and_nothing_of_others_removed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(job.fcntl, "flock", flock)
    first = Path(job.make_weights_dir(tmp_path))
    second = Path(job.make_weights_dir(tmp_path))
    assert first.is_dir() and second.is_dir() and first != second
    assert "has no locks" in caplog.text


@pytest.mark.parametrize(
    ("device", "version", "expected"),
    [
        ("nvidia0", "2.13.0", True),
        ("nvidia0", "2.13.0+cpu", False),
        ("nvidiactl", "2.13.0", False),
    ],
)
def test_computes_on_gpus_takes_a_device_and_torch_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, version: str, expected: bool
) -> None:
    """A driver without a GPU, or a GPU beside torch for CPUs, computes nothing there."""
    (tmp_path / device).touch()
    monkeypatch.setattr("protocol.machine.metadata.version", lambda name: version)
    assert computes_on_gpus(tmp_path) is expected
