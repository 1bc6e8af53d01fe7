"""Checkpoints go on as if nothing had happened; published weights are what the model has."""

import copy
import os
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from transformers import AutoTokenizer

from config import GaeAlgorithm
from learner import checkpoint, publish
from learner.checkpoint_damage import describe_damage
from learner.data.rollout_metrics import count_generated_tokens
from learner.model.policy import load_policy
from learner.publish import WeightWriter, sha256_of
from learner.training import Training
from telemetry.analysis.collapse import last_update_before_signs
from tests.fixtures.learner import job_of_tiny, random_group, small_config

CONFIG = small_config(warm_start__episodes="0", learner__learning_rate="1e-3")
VOCABULARY = 300


@pytest.fixture
def job(tmp_path):
    return job_of_tiny(tmp_path, CONFIG)


def no_progress(*_, **__):
    pass


def groups(seed):
    rng = np.random.default_rng(seed)
    return [random_group(rng, VOCABULARY, g) for g in range(2)]


def weights(training):
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("fsync", [False, True])
def test_checkpoint_is_synced_before_it_has_its_name_exactly_if_asked_for(job, monkeypatch, fsync):
    """A checkpoint is on the disk before it has its name exactly if that is asked for."""
    config = msgspec.structs.replace(
        job.config, learner=msgspec.structs.replace(job.config.learner, fsync=fsync)
    )
    training = Training.begin(msgspec.structs.replace(job, config=config), no_progress)
    synced = []
    before = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", lambda *names: (before.extend(synced), rename(*names)))
    written = training.checkpoint()
    whole = {path.stat().st_ino for path in (written, *written.rglob("*"))}
    assert set(before) == (whole if fsync else set())
    assert set(synced) - whole == ({written.parent.stat().st_ino} if fsync else set()), (
        "its name, after"
    )


@pytest.mark.slow
def test_restored_training_makes_the_very_same_updates(job):
    training = Training.begin(job, no_progress)
    training.update(groups(0))
    training.control = '{"eta": 1}'
    taken_in = checkpoint.IntakeState(
        log_position=123, next_group=7, next_evaluation=2, dropped={"dropped_canceled": 4}
    )
    training.checkpoint(taken_in)
    restored = Training.restore(job, no_progress)
    assert restored.update_number == 1
    assert (
        restored.tokens
        == training.tokens
        == sum(count_generated_tokens(episode) for group in groups(0) for episode in group)
        > 0
    )
    assert restored.control == '{"eta": 1}'
    assert restored.intake_state == taken_in
    for seed in (1, 2):
        first = training.update(groups(seed))
        second = restored.update(groups(seed))
        assert first["loss"] == second["loss"] and same(weights(training), weights(restored))


@pytest.mark.slow
def test_the_reference_policy_survives_a_resume(job):
    """It is not the one that training has come to since."""
    settings = msgspec.structs.replace(job.config.learner, kl_coef=0.5, reference_every=2)
    job = msgspec.structs.replace(job, config=msgspec.structs.replace(job.config, learner=settings))
    training = Training.begin(job, no_progress)
    training.update(groups(0))
    training.checkpoint()
    restored = Training.restore(job, no_progress)
    for seed in (1, 2):  # after the first of these, the policy becomes the reference
        first = training.update(groups(seed))
        second = restored.update(groups(seed))
        assert first["kl_reference"] == second["kl_reference"] > 0
    assert same(weights(training), weights(restored))


@pytest.mark.slow
def test_what_was_explored_survives_a_resume(job):
    training = Training.begin(job, no_progress)
    training.update(groups(0))
    training.checkpoint()
    restored = Training.restore(job, no_progress)
    first = training.update(groups(1))
    second = restored.update(groups(1))
    assert (
        second["novel_pairs"] == first["novel_pairs"] < 1
        and first["known_pairs"] == second["known_pairs"]
    )


@pytest.mark.slow
def test_the_value_head_survives_a_resume(job):
    settings = msgspec.structs.replace(job.config.learner, algorithm=GaeAlgorithm())
    job = msgspec.structs.replace(job, config=msgspec.structs.replace(job.config, learner=settings))
    training = Training.begin(job, no_progress)
    training.update(groups(0))
    training.checkpoint()
    restored = Training.restore(job, no_progress)
    for seed in (1, 2):
        first = training.update(groups(seed))
        second = restored.update(groups(seed))
        assert first["value_loss"] == second["value_loss"] > 0
    assert same(weights(training), weights(restored))


@pytest.mark.slow
def test_collapse_takes_training_back_to_the_checkpoint_before_with_smaller_steps(job, tmp_path):
    """A sign of a collapse takes training back to the checkpoint before it with smaller steps."""
    settings = msgspec.structs.replace(job.config.learner, rollback=0.5)
    job = msgspec.structs.replace(job, config=msgspec.structs.replace(job.config, learner=settings))
    training = Training.begin(job, no_progress)
    for seed in range(8):
        training.update(groups(seed))
        if seed in (0, 2, 6):
            training.checkpoint()
        if seed == 2:
            good = weights(training)
        assert training.watch({"ratio_p99": 1.0}) is None
    assert training.watch({"ratio_p99": 9.0}) == 3  # five updates and more ago
    assert same(weights(training), good) and training.update_number == 8
    assert settings.max_staleness == 1 and [
        training.watch({"ratio_p99": 9.0}) for _ in range(2)
    ] == [None, None]  # of the lost weights
    assert checkpoint.latest(tmp_path).name == "000007", (
        "killed here, a resumed run finds the sign again"
    )
    training.checkpoint()
    kept = sorted(path.name for path in checkpoint.checkpoints_dir(tmp_path).iterdir())
    assert kept == ["000001", "000003", "000007-collapsed", "000008"]
    restored = Training.restore(job, no_progress)
    first = training.update(groups(9))
    second = restored.update(groups(9))
    assert first["learning_rate"] == second["learning_rate"] == 0.5 * settings.learning_rate
    assert same(weights(training), weights(restored))


def test_half_written_checkpoint_is_never_picked(job, tmp_path, monkeypatch):
    training = Training.begin(job, no_progress)
    whole = training.checkpoint()
    training.update(groups(0))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_training", killed)
    with pytest.raises(KeyboardInterrupt):
        training.checkpoint()
    assert checkpoint.latest(tmp_path) == whole
    monkeypatch.undo()
    training.update(groups(1))
    after = training.checkpoint()
    assert sorted(whole.parent.iterdir()) == [whole, after], "what was left of the half-written one"


@pytest.mark.parametrize(
    "library",
    [OSError(28, "No space left on device"), RuntimeError("unexpected pos 267968 vs 267856")],
)
def test_a_checkpoint_on_a_full_disk_says_where_and_leaves_the_last_good_one_alone(
    job, tmp_path, monkeypatch, library
):
    training = Training.begin(job, no_progress)
    whole = training.checkpoint()
    training.update(groups(0))

    def full(*_):
        raise library

    # what it raises depends on where the disk was full
    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    with pytest.raises(OSError, match=r"000001 cannot be written: .* \(run\.dir; .* MB left\)"):
        training.checkpoint()
    assert list(whole.parent.iterdir()) == [whole] == [checkpoint.latest(tmp_path)]


def test_checkpoint_of_the_same_update_is_replaced(job, tmp_path):
    training = Training.begin(job, no_progress)
    for position in (1, 2):
        training.checkpoint(checkpoint.IntakeState(log_position=position))
    assert Training.restore(job, no_progress).intake_state.log_position == 2
    assert [p.name for p in checkpoint.checkpoints_dir(tmp_path).iterdir()] == ["000000"]


def test_latest_is_the_highest_number(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for name in ("000009", "000010", ".000011-1", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.latest(tmp_path).name == "000010"


def test_checkpoint_is_a_directory_that_transformers_loads(job):
    training = Training.begin(job, no_progress)
    path = training.checkpoint()
    assert same(load_policy(path).state_dict(), weights(training))
    assert AutoTokenizer.from_pretrained(path).chat_template


def test_resume_without_a_checkpoint_says_so(job):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Training.restore(job, no_progress)


@pytest.mark.slow
def test_new_settings_hold_after_a_resume(job):
    training = Training.begin(job, no_progress)
    training.update(groups(0))
    training.checkpoint()
    learner = msgspec.structs.replace(CONFIG.learner, learning_rate=5e-5)
    changed = msgspec.structs.replace(job, config=msgspec.structs.replace(CONFIG, learner=learner))
    assert Training.restore(changed, no_progress).update(groups(1))["learning_rate"] == 5e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)],
)
def test_published_weights_are_those_of_the_model(job, tmp_path, dtype, stored):
    model = load_policy(tmp_path / "policy")
    weights = written(tmp_path / "weights", model, 3, dtype)
    published = load_file(weights.path)
    checkpointed = load_file(tmp_path / "policy" / "model.safetensors")
    assert published.keys() == checkpointed.keys()
    assert all(
        torch.equal(published[name], model.state_dict()[name].to(stored)) for name in published
    )
    assert (weights.version, weights.checksum, weights.size) == (
        3,
        sha256_of(weights.path),
        weights.path.stat().st_size,
    )


def written(directory, model, version: int, dtype: str = "bfloat16"):
    return WeightWriter(directory).write(publish.copy_weights(model, version, dtype))


def test_a_snapshot_is_of_the_weights_as_they_were(job, tmp_path):
    model = load_policy(tmp_path / "policy")
    before = copy.deepcopy(model.state_dict())
    snapshot = publish.copy_weights(model, 1, "float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    published = load_file(WeightWriter(tmp_path / "weights").write(snapshot).path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in published.items())


def test_a_snapshot_may_take_the_memory_of_one_that_has_been_written(job):
    training = Training.begin(job, no_progress)
    first = training.snapshot()
    pointers = {name: tensor.data_ptr() for name, tensor in first.tensors.items()}
    training.update(groups(0))
    training.spare = first
    second = training.snapshot()
    third = training.snapshot()
    assert {name: tensor.data_ptr() for name, tensor in second.tensors.items()} == pointers
    for found in (second, third):
        assert all(
            torch.equal(tensor, training.model.state_dict()[name])
            for name, tensor in found.tensors.items()
        )
    assert second.version == 1 and not pointers.keys() - third.tensors.keys()
    assert all(third.tensors[name].data_ptr() != pointer for name, pointer in pointers.items())


def test_interrupted_publication_leaves_no_file_of_that_version(job, tmp_path, monkeypatch):
    model = load_policy(tmp_path / "policy")
    monkeypatch.setattr(publish.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "weights", model, 1)
    assert not list((tmp_path / "weights").glob("v*.safetensors"))


def test_publishing_does_not_touch_the_model(job, tmp_path):
    model = load_policy(tmp_path / "policy")
    before = copy.deepcopy(model.state_dict())
    written(tmp_path / "weights", model, 1)
    assert same(before, model.state_dict())


def test_weights_that_no_engine_has_loaded_stay_on_disk(
    tmp_path: Path,
):
    """Weights that no engine has loaded stay on disk.

    With max_staleness 2 or more, the learner may make several updates while engines load one
    version; the file was gone when its turn came.
    """
    publisher = WeightWriter(tmp_path)
    weights = {"weight": torch.zeros(1)}
    kept = lambda: sorted(int(path.stem[1:]) for path in tmp_path.iterdir())  # noqa: E731
    for version in range(7, 12):
        publisher.write(publish.Snapshot(version, weights))
    assert kept() == [7, 8, 9, 10, 11]
    publisher.applied_version = 10
    publisher.write(publish.Snapshot(12, weights))
    assert kept() == [10, 11, 12]
    publisher.applied_version = 12
    publisher.write(publish.Snapshot(13, weights))
    assert kept() == [12, 13]


def with_learner(job, **settings):
    learner = msgspec.structs.replace(job.config.learner, **settings)
    return msgspec.structs.replace(job, config=msgspec.structs.replace(job.config, learner=learner))


@pytest.mark.slow
def test_the_newest_checkpoints_stay_with_the_best_evaluated_one_and_every_so_many(job):
    training = Training.begin(with_learner(job, keep_checkpoints=2, keep_every=4), no_progress)
    for success in (0.1, 0.7, 0.3, 0.2, 0.6, 0.5, 0.4):
        training.update(groups(training.update_number))
        training.checkpoint()
        training.note_evaluation(training.update_number, success)
    assert sorted(checkpoint.by_update(Path(job.run_dir))) == [2, 4, 6, 7]
    assert sorted(
        path.name for path in checkpoint.checkpoints_dir(Path(job.run_dir)).iterdir()
    ) == ["000002", "000004", "000006", "000007"]
    training.checkpoint()
    assert Training.restore(job, no_progress).best == training.best == checkpoint.Evaluated(2, 0.7)


@pytest.mark.slow
def test_after_a_resume_checkpoints_of_before_count_among_the_newest(job):
    job = with_learner(job, keep_checkpoints=2)
    training = Training.begin(job, no_progress)
    for success in (0.7, 0.1, 0.2):
        training.update(groups(training.update_number))
        training.checkpoint()
        training.note_evaluation(training.update_number, success)
    training.checkpoint()
    restored = Training.restore(job, no_progress)
    restored.update(groups(3))
    restored.checkpoint()
    assert sorted(checkpoint.by_update(Path(job.run_dir))) == [1, 3, 4], (
        "the best one, and the two newest"
    )


def test_a_checkpoint_knows_of_its_files_whether_they_are_as_they_were_written(job):
    training = Training.begin(job, no_progress)
    written = training.checkpoint()
    training.checkpoint(checkpoint.IntakeState(next_group=5))  # which rewrites what it says
    assert describe_damage(written) == ""
    with (written / checkpoint.STATE / "tensors" / "__0_0.distcp").open("r+b") as file:
        file.truncate(100)
    assert describe_damage(written).startswith(
        "training_state/tensors/__0_0.distcp has 100 bytes, and "
    )


@pytest.mark.slow
def test_with_rollback_the_checkpoint_that_it_goes_back_to_stays(job):
    training = Training.begin(with_learner(job, keep_checkpoints=1, rollback=0.5), no_progress)
    for _ in range(8):
        training.update(groups(training.update_number))
        training.checkpoint()
        kept = checkpoint.by_update(Path(job.run_dir))
        assert (
            last_update_before_signs(training.update_number, range(1, training.update_number + 1))
            in kept
            and len(kept) <= 6
        )


def test_a_checkpoint_of_the_same_weights_is_not_written_again_but_what_it_says(job):
    training = Training.begin(job, no_progress)
    training.update(groups(0))
    first = training.checkpoint()
    before = {
        path: path.stat().st_mtime_ns for path in first.rglob("*.*") if path.name != "state.json"
    }
    assert training.checkpoint(checkpoint.IntakeState(next_group=5)) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert checkpoint.read_state(first).intake.next_group == 5
    training.update(groups(1))
    assert training.checkpoint() != first


@given(
    updates=st.sets(st.integers(0, 60), max_size=15),
    newest=st.integers(0, 4),
    every=st.integers(0, 9),
    best=st.integers(0, 60),
)
def test_prune_keeps_the_newest_the_best_and_every_so_many_and_no_more(
    updates: set[int], newest: int, every: int, best: int
) -> None:
    """The newest is what a run resumes from; with newest 0 all stay."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory)
        for update in updates:
            (run_dir / "checkpoints" / f"{update:06d}").mkdir(parents=True)
        checkpoint.prune(run_dir, newest, every, {best})
        kept = set(checkpoint.by_update(run_dir))
        leftovers = [path for path in run_dir.glob("checkpoints/*") if not path.name.isdecimal()]
    expected = {
        update
        for update in updates
        if newest == 0
        or update in sorted(updates)[-newest:]
        or update == best
        or (every and update % every == 0)
    }
    assert kept == expected and not leftovers
