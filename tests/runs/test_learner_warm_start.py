"""Warm start: it learns, by the schedule, from what the expert won, and is kept."""

import dataclasses
import errno
import fcntl
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import learner.warm_start.demonstrations
from config import ConfigError, EnvSection, Job, TinySection
from config.resolve import resolve
from envs.alfworld.environment import AlfWorldEpisode
from learner.data.rows import merge_turns
from learner.data.samples import TrainingSample
from learner.model.policy import load_policy
from learner.training import Training
from learner.warm_start import policy_cache, warm_start
from learner.warm_start.demonstrations import (
    NoDemonstrations,
    TurnTokenizer,
    play_demonstrations,
)
from learner.warm_start.tiny import CHAT_TEMPLATE, TURN_END, train_tokenizer
from protocol.chat_format import ChatFormat
from protocol.prompting import Prompter
from tests.fixtures.example_environment import guide_code
from tests.fixtures.learner import TURNS, small_config
from tests.fixtures.runs import job_in

pytestmark = pytest.mark.slow


def no_progress(*_, **__):
    pass


def test_schedule_rises_then_falls():
    shares = [warm_start.learning_rate_fraction(step, 100) for step in range(100)]
    peak = shares.index(max(shares))
    assert max(shares) == pytest.approx(1.0) and peak <= 5
    assert shares[:peak] == sorted(shares[:peak]) and shares[peak:] == sorted(
        shares[peak:], reverse=True
    )
    assert 0 < shares[-1] < 0.05


@pytest.mark.parametrize(("epochs", "turns"), [(1.0, 50), (2.5, 125), (0.1, 5)])
def test_batches_cover_the_epochs_asked_for(epochs, turns):
    samples = [
        TrainingSample(
            np.full(6, i), np.full(4, i), np.ones(4, bool), np.zeros(4), np.zeros(4), 1.0
        )
        for i in range(50)
    ]
    rows = merge_turns(samples)
    batches = list(warm_start.draw_batches(rows, 40, epochs, np.random.default_rng(0)))
    assert sum(map(len, batches)) == turns and all(len(batch) == 4 for batch in batches[:-1])
    if epochs >= 1:
        assert {int(row[0].prompt[0]) for batch in batches for row in batch} == set(range(50))


def test_batches_keep_the_turns_of_a_conversation_together():
    first = TrainingSample(
        np.arange(6), np.arange(6, 10), np.ones(4, bool), np.zeros(4), np.zeros(4), 1.0
    )
    second = dataclasses.replace(first, prompt=np.arange(12))
    rows = merge_turns([first, second])
    (batch,) = warm_start.draw_batches(rows, 16, 1.0, np.random.default_rng(0))
    assert batch == [[first, second]]


def test_a_sample_is_the_chat_with_one_answer():
    tokenizer = train_tokenizer(TinySection(vocabulary=400), TURNS)
    prompt, response = TURNS[0]
    (sample,) = TurnTokenizer(
        Prompter(
            tokenizer.to_str().encode(),
            ChatFormat(CHAT_TEMPLATE, end_tokens=[tokenizer.token_to_id(TURN_END)]),
        )
    ).tokenize_turns([(prompt, response)])
    assert (
        tokenizer.decode(sample.prompt, skip_special_tokens=False)
        == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(sample.response, skip_special_tokens=False) == response + "<|im_end|>"
    assert sample.mask.all()


def test_demonstrations_follow_the_seed():
    first, again, other = (
        list(play_demonstrations(small_config(run__seed=seed), episodes=5))
        for seed in ("0", "0", "1")
    )
    assert first == again and first != other and all(first)


def test_demonstrations_may_take_more_turns_than_an_episode():
    shown = list(play_demonstrations(small_config(warm_start__wasted_turn_rate="0.5"), episodes=20))
    assert len(shown) == 20 and max(map(len, shown)) > 20


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(
        warm_start, "available_cores", lambda: 1
    )  # more threads than this small model has use for
    config = small_config(
        warm_start__episodes="40",
        warm_start__batch_tokens="2048",
        run__cache_dir=str(tmp_path / "cache"),
        learner__threads="1",
    )
    return job_in(tmp_path / "run", config)


def test_warm_start_learns_and_the_same_one_is_not_done_twice(job, monkeypatch):
    losses = []
    real = policy_cache.warm_start
    monkeypatch.setattr(
        policy_cache, "warm_start", lambda *a: losses.append(real(*a)["loss"]) or {}
    )
    first = Training.begin(job, no_progress)
    second = Training.begin(job, no_progress)
    assert len(losses) == 1 and losses[0] < 0.9 * np.log(job.config.model.tiny.vocabulary)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])


def test_a_warm_start_in_another_precision_is_another_one(job, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_cache, "warm_start", lambda *_: {})
    Training.begin(job, no_progress)
    config = msgspec.structs.replace(
        job.config, learner=msgspec.structs.replace(job.config.learner, precision="bfloat16")
    )
    Training.begin(msgspec.structs.replace(job, config=config), no_progress)
    assert len(list((tmp_path / "cache").glob("policy-*"))) == 2


def test_two_runs_that_want_the_same_warm_start_at_once_make_it_once(job, monkeypatch):
    made = []
    waiting = threading.Event()
    begun = threading.Event()
    real = policy_cache.warm_start

    def slowly(*arguments):
        made.append(threading.current_thread())
        begun.set()
        assert waiting.wait(60)
        return real(*arguments)

    monkeypatch.setattr(policy_cache, "warm_start", slowly)
    cpu = torch.device("cpu")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(policy_cache.warm_start_or_find, job, no_progress, cpu)
        assert begun.wait(60)
        second = pool.submit(
            policy_cache.warm_start_or_find,
            job,
            lambda phase, *_, **__: waiting.set() if phase.startswith("waiting") else None,
            cpu,
        )
        assert first.result() == second.result()
    assert len(made) == 1
    assert load_policy(first.result()).dtype == torch.float32


@pytest.mark.parametrize("why", ["another's file", "no locks"])
def test_a_warm_start_that_cannot_be_locked_is_made_without(
    job, why: str, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(policy_cache, "policy_digest", lambda *_: "0123")
    cache = Path(job.config.run.cache_dir)
    cache.mkdir(exist_ok=True)
    if why == "no locks":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    else:
        (cache / ".policy-0123.lock").symlink_to(
            "/nowhere/at/all"
        )  # whoever we are, it cannot be opened
    Training.begin(job, no_progress)
    assert (cache / "policy-0123" / "model.safetensors").exists()
    assert not list(cache.glob(".policy-0123-*"))
    assert re.search(r"run\.cache_dir: .*\.policy-0123\.lock cannot be locked", caplog.text)


def no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_kept_policy_that_cannot_be_read_names_the_setting(job, monkeypatch: pytest.MonkeyPatch):
    kept = Path(job.config.run.cache_dir) / "policy-0123"
    shutil.copytree(job.model_dir, kept)
    weights = kept / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    monkeypatch.setattr(policy_cache, "policy_digest", lambda *_: "0123")
    with pytest.raises(
        ConfigError,
        match=(
            r"run\.cache_dir: .*policy-0123 cannot be read \(.*\); "
            r"remove it, or give another directory"
        ),
    ):
        Training.begin(job, no_progress)


def test_warm_start_reports_its_progress(job):
    seen = []
    Training.begin(job, lambda phase, done, of, **figures: seen.append((phase, done, of, figures)))
    phases = [phase for phase, *_ in seen]
    assert phases[0] == "demonstrations" and phases[-1] == "warm start"
    assert seen[-1][1] == seen[-1][2] > 0
    *_, played, episodes, won = [row for row in seen if row[0] == "demonstrations"][-1]
    assert played == episodes == 40 and 0 < won["won"] <= 40
    assert 0 < seen[-1][3]["loss"] < seen[phases.index("warm start")][3]["loss"]


@pytest.mark.parametrize("episodes", [0, 5])
def test_conversations_of_a_file_are_learned_with_and_without_an_expert(
    job: Job, tmp_path: Path, episodes: int
) -> None:
    exchange = [
        {"role": "user", "content": "You see a mug 1."},
        {"role": "assistant", "content": "<think>A mug.</think>\n<action>take mug 1</action>"},
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text(200 * f"{json.dumps({'messages': exchange})}\n")
    settings = msgspec.structs.replace(
        job.config.warm_start, episodes=episodes, data=str(file), batch_tokens=512
    )
    config = msgspec.structs.replace(job.config, warm_start=settings)
    seen: dict[str, list[dict[str, float]]] = defaultdict(list)
    Training.begin(
        msgspec.structs.replace(job, config=config),
        lambda phase, done, of, **figures: seen[phase].append(figures),
    )
    expected = ["demonstrations", "conversations", "warm start"]
    assert list(seen) == expected[not episodes :]
    assert seen["conversations"][-1] == {"turns": 200}
    losses = [figures["loss"] for figures in seen["warm start"]]
    assert losses[-1] < losses[0] / 2


def test_a_model_of_ones_own_is_warm_started_if_asked_and_every_weight_by_adamw(job, small_policy):
    settings = {
        "model": str(small_policy),
        "warm_start.episodes": "2",
        "run.cache_dir": job.config.run.cache_dir,
    }
    own = msgspec.structs.replace(job, config=resolve(None, settings), model_dir=str(small_policy))
    before = load_policy(small_policy).state_dict()
    after = Training.begin(own, no_progress).model.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    unasked = msgspec.structs.replace(own, config=resolve(None, {"model": str(small_policy)}))
    for name, tensor in Training.begin(unasked, no_progress).model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_expert_that_never_wins_is_an_error(job, monkeypatch):
    monkeypatch.setattr(warm_start, "play_tasks", lambda *_: iter([None] * 40))
    with pytest.raises(NoDemonstrations, match=r"warm_start\.episodes: .* won none of 40"):
        Training.begin(job, no_progress)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_tasks_whose_demonstration_fails_are_left_out_unless_all_fail(
    share: float, monkeypatch: pytest.MonkeyPatch
):
    real = learner.warm_start.demonstrations.play_expert_episode

    def fails_at_times(environment, split, index, rng, **settings):
        if random.Random(index).random() < share:
            raise SystemExit(2)
        return real(environment, split, index, rng, **settings)

    monkeypatch.setattr(learner.warm_start.demonstrations, "play_expert_episode", fails_at_times)
    if share == 1:
        where = r"task \d+: SystemExit: 2 \(.*test_learner_warm_start.py:\d+ in fails_at_times\)"
        with pytest.raises(RuntimeError, match=f"env.name: none of the first 20 .*; {where}"):
            list(play_demonstrations(small_config(), episodes=20))
    else:
        assert 5 < len(list(play_demonstrations(small_config(), episodes=20))) < 20


def test_tasks_that_never_end_are_no_demonstrations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learner.warm_start.demonstrations, "MAX_TURNS", 1)
    with pytest.raises(RuntimeError, match="did not end within 1 turns: step"):
        list(play_demonstrations(small_config(), episodes=3))


def test_a_demonstration_that_hangs_is_left_out_and_the_place_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    real = AlfWorldEpisode.step
    ended = threading.Event()
    calls = []

    def hangs_once(self, action):
        calls.append(action)
        if len(calls) == 3:
            ended.wait(60)
        return real(self, action)

    monkeypatch.setattr(AlfWorldEpisode, "step", hangs_once)
    began = time.monotonic()
    try:
        assert (
            len(list(play_demonstrations(small_config(actor__step_timeout="0.5"), episodes=3))) == 2
        )
    finally:
        ended.set()
    assert time.monotonic() - began < 30
    place = r"test_learner_warm_start\.py:\d+ in hangs_once"
    message = (
        r": the environment took more than 0\.5 s \(actor\.step_timeout\), "
        rf"at .*{place}"
    )
    assert [bool(re.search(message, record.message)) for record in caplog.records] == [True]


def test_a_demonstration_of_many_turns_may_take_longer_than_one_turn(
    monkeypatch: pytest.MonkeyPatch,
):
    real = AlfWorldEpisode.step

    def slowly(self, action):
        time.sleep(0.1)
        return real(self, action)

    monkeypatch.setattr(AlfWorldEpisode, "step", slowly)
    (turns,) = play_demonstrations(small_config(actor__step_timeout="0.5"), episodes=1)
    assert len(turns) > 5


def test_policy_digest_follows_the_source_of_an_environments_file(
    job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm start is not reused once the expert in the environment's file has changed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "game.py"
    digests = set()
    for comment in ("", "# another expert\n"):
        file.write_text(guide_code() + comment)
        config = msgspec.structs.replace(job.config, env=EnvSection(name=str(file)))
        digests.add(policy_cache.policy_digest(config, Path(job.model_dir)))
    assert len(digests) == 2
