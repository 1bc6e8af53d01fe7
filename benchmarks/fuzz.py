"""Coverage-guided fuzzing of all that decodes and judges what comes over a socket.

`python -m benchmarks.fuzz [--seconds N] [--seed K]`; needs `pip install -e '.[fuzz]'` (atheris:
libFuzzer for Python)

It begins with sound messages of every kind, and looks for bytes that raise anything but BadFrame.
The first ones that do are printed, and written to the current directory by libFuzzer, and the exit
status is not 0. In the suite, hypothesis does the same without a guide.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

MAX_BYTES = 4096


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of libFuzzer's mutations (default %(default)s)"
    )
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: atheris is not installed: pip install -e '.[fuzz]'")
    atheris: Any = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["protocol"]):
        from protocol import codec, messages
        from protocol import validation as checks

    bounds = checks.Limits(vocabulary=1000, context=512, group_size=8)
    open_now = checks.AdmissionWindow(
        first_group=0, end_group=16, evaluations=2, evaluation_episodes=8, version=3
    )

    def one(data: bytes) -> None:
        """Do what a socket of the run does with a frame."""
        try:
            message = codec.decode(data)
        except codec.BadFrame:
            return
        match message:
            case messages.Trajectory():
                checks.validate_trajectory(message, bounds, open_now)
            case messages.TurnRequest():
                checks.validate_turn_request(message, bounds)
            case messages.SignalFrame():
                if not checks.validate_signal_frame(message):
                    checks.find_misplaced_rows(message, max_tokens=512)
            case messages.Stats():
                checks.validate_stats(message)
            case messages.ShardState():
                checks.validate_shard_state(message, shards=3)

    with tempfile.TemporaryDirectory() as corpus:
        for number, message in enumerate(samples()):
            (Path(corpus) / str(number)).write_bytes(codec.encode(message))
        atheris.Setup(
            [
                sys.argv[0],
                corpus,
                f"-max_total_time={options.seconds}",
                f"-seed={options.seed or 1}",
                f"-max_len={MAX_BYTES}",
            ],
            one,
        )
        atheris.Fuzz()


def samples() -> list:
    """A sound message of each kind that is judged, and some others."""
    from protocol.arrays import FLOAT16, FLOAT32, INT32, UINT8, pack
    from protocol.messages import (
        Credit,
        EpisodeEnded,
        EpisodeKey,
        Heartbeat,
        Response,
        ShardState,
        SignalFrame,
        Span,
        Stats,
        StopReason,
        Trajectory,
        Turn,
        TurnRequest,
    )

    key = EpisodeKey(1, 2)
    prompt = pack([5, 6, 7], INT32)
    number = pack([0.5, 0.25], FLOAT32)
    kept = Response(
        tokens=pack([1, 2], INT32),
        log_probs=pack([-0.5, -0.1], FLOAT32),
        mask=pack([1, 0], UINT8),
        spans=[Span(0, 2, 1)],
        uncertainty=pack([0.5, 0.5], FLOAT16),
        signals=pack([1.0] * 6, FLOAT32),
        events=[],
        stop=StopReason.END,
        score=0.5,
        thinking=1,
    )
    turn = Turn(
        prompt=prompt, kept=kept, rejected=[kept], reward=1.0, valid=True, anchor="a", action="look"
    )
    whole = pack([1, 2], INT32)
    return [
        Trajectory(
            key=key,
            lease_attempt=0,
            task_index=3,
            task_type="a",
            task="b",
            success=True,
            turns=[turn, turn],
            scores={"raw": 1.0},
        ),
        TurnRequest(key=key, lease_attempt=0, turn_index=1, prompt=prompt),
        SignalFrame(
            step=1,
            turn_ids=["a", "b"],
            position=whole,
            entropy=number,
            confidence=number,
            top_log_prob=number,
            forced=whole,
            previous=whole,
        ),
        ShardState(
            shard=1,
            version=3,
            seconds=0.1,
            engines=[("http://a", "healthy", 2)],
            gauges={"engines": 1.0},
        ),
        Stats(source="learner", event="update", values={"update": 1.0, "loss": None}),
        Credit(episodes=3),
        EpisodeEnded(key=key, lease_attempt=0),
        Heartbeat(loop_lag=0.1, asking=2),
    ]


if __name__ == "__main__":
    main()
