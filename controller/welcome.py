"""What an actor that introduces itself is told."""

from __future__ import annotations

import secrets
from pathlib import Path

from config import Job
from protocol.messages import Welcome
from protocol.prompting import read_chat_template


def welcome(job: Job) -> Welcome:
    """All that it needs to know to play episodes of the job, wherever it is."""
    config = job.config
    return Welcome(
        environment=config.env.name,
        environment_settings=config.environment_settings(),
        tokenizer_json=(Path(job.model_dir) / "tokenizer.json").read_bytes(),
        chat_template=read_chat_template(Path(job.model_dir)),
        learner_host=""
        if config.learner.host == "0.0.0.0"
        else config.learner.host,  # "": where the controller is
        learner_port=int(job.endpoints.trajectories.rsplit(":", 1)[1]),
        max_prompt_tokens=config.engine.max_model_len - 1,
        heartbeat_seconds=config.actor.heartbeat_seconds,
        step_timeout=config.actor.step_timeout,
        session=secrets.token_hex(8),
        anchor_texts=config.learner.anchor_similarity < 1,
    )
