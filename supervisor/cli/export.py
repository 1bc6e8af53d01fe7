"""`python run.py export RUN DIR`: a checkpoint as a Hugging Face directory with a model card."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from config import Config, ConfigError, Decoding
from config.model import is_hub_id
from config.options import values_of
from config.resolve import find_changes, read_record
from engine.launch import serve_command
from envs.base import Environment
from envs.conversation import is_conversation, to_chat_messages, tools_of
from envs.conversation_checks import check_opening
from envs.harness import is_harness
from envs.registry import short_name
from learner.checkpoint_damage import STATE, describe_damage
from protocol.conversation import build_codec
from protocol.files import atomic_write
from protocol.model_json import read_model_json
from protocol.prompting import load_prompter
from supervisor.job import build_environment, environment_errors, first_task
from supervisor.models import Checkpoint, find_checkpoint
from telemetry.format import format_updates
from telemetry.sinks.metrics_file import METRICS_FILE, Record, read_metrics, select_kind
from telemetry.work_clock import show_work

CARD_FILE = "README.md"
GENERATION_FILE = "generation_config.json"

BASE_MODELS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""model.name -> its name on the hub, of a model that comes in a package."""

MAX_PROMPT_CHARACTERS = 2000
"""How much of an example prompt a model card shows."""


def main(arguments: list[str]) -> int:
    """Export a checkpoint of a run."""
    parser = argparse.ArgumentParser(
        prog="run.py export",
        description=(
            "Write a checkpoint as a Hugging Face directory, with a model card of the run's "
            "figures. It loads in transformers and vLLM, and what training needs is left out. RUN "
            "is a run directory (its newest checkpoint), RUN@UPDATE, RUN@best, or the directory of "
            "a checkpoint."
        ),
    )
    parser.add_argument("run", metavar="RUN", help="see above")
    parser.add_argument("dir", type=Path, metavar="DIR", help="where the model goes; a new place")
    parser.add_argument(
        "--evaluation", type=Path, metavar="FILE", help="an eval.json of the checkpoint to cite"
    )
    options = parser.parse_args(arguments)
    checkpoint = find_checkpoint(options.run)
    if checkpoint is None:
        raise ConfigError(f"export: {options.run} is no run, and no checkpoint of one")
    with show_work(f"writing {options.dir}"):
        export(checkpoint, options.dir, options.evaluation)
    directory = shlex.quote(str(options.dir))
    Console().print(
        f"wrote {options.dir}: update {checkpoint.update} of {checkpoint.run_dir}\n"
        f"  serve:   {shlex.join(serve_command(str(options.dir)))}\n"
        f"  publish: hf upload OWNER/NAME {directory}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def export(checkpoint: Checkpoint, directory: Path, evaluation: Path | None = None) -> None:
    """Write the model of a checkpoint, and its card, into a new directory.

    `evaluation` is an eval.json that the card cites. Raises ConfigError for a damaged checkpoint,
    and a place that is not empty.
    """
    damage = describe_damage(checkpoint.directory)
    if damage:
        raise ConfigError(f"export: {checkpoint.directory} is damaged: {damage}")
    if directory.exists() and (directory.is_file() or any(directory.iterdir())):
        raise ConfigError(f"export: {directory} is there already; give another directory")
    record = read_training_record(checkpoint)
    card = model_card(record, _read_evaluation(evaluation))
    try:
        shutil.copytree(
            checkpoint.directory,
            directory,
            ignore=shutil.ignore_patterns(STATE),
            dirs_exist_ok=True,
        )
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"export: {directory} cannot be written to: {error}") from None
    generation = json.dumps(generation_config(checkpoint.directory, record.config), indent=2)
    atomic_write(directory / GENERATION_FILE, generation + "\n", "DIR")
    atomic_write(directory / CARD_FILE, card, "DIR")


def generation_config(checkpoint: Path, config: Config) -> dict[str, Any]:
    """The defaults of transformers and vLLM for the model: as the run's evaluations decode."""
    settings: dict[str, Any] = {}
    if (checkpoint / GENERATION_FILE).is_file():
        try:
            settings = read_model_json(checkpoint / GENERATION_FILE)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    decoding = config.decoding(evaluation=True)
    # transformers refuses these beside greedy decoding, and the last says that none is one's own
    for name in (*decoding._fields, "_from_model_config"):
        settings.pop(name, None)
    if decoding.greedy:
        return settings | {"do_sample": False}
    return settings | {"do_sample": True, **decoding._asdict()}


class TrainingRecord(NamedTuple):
    """Contents of a model card: a run up to the checkpoint."""

    config: Config
    update: int
    updates: Sequence[Record]
    evaluations: Sequence[Record]
    versions: Mapping[str, str]
    example_prompt: str
    is_conversation: bool = False


def read_training_record(checkpoint: Checkpoint) -> TrainingRecord:
    """Read the settings and figures of the run that wrote a checkpoint."""
    run_dir = checkpoint.run_dir
    config = read_record(run_dir / "config.toml")
    records = read_metrics(run_dir / METRICS_FILE)
    versions = {}
    if (run_dir / "summary.json").is_file():
        versions = json.loads((run_dir / "summary.json").read_text())["versions"]
    return TrainingRecord(
        config=config,
        update=checkpoint.update,
        updates=_up_to(select_kind(records, "update"), checkpoint.update),
        evaluations=_up_to(select_kind(records, "evaluation"), checkpoint.update),
        versions=versions,
        **_describe_environment(config, checkpoint.directory),
    )


def _up_to(records: Sequence[Record], update: int) -> list[Record]:
    return [record for record in records if record["update"] <= update]


def _describe_environment(config: Config, policy: Path) -> dict[str, Any]:
    """The first prompt of a task, and whether there are conversations, as in a TrainingRecord.

    The prompt is "" where the environment is not to be had here.
    """
    try:
        environment = build_environment(config)
        if is_harness(environment):
            return {"example_prompt": ""}  # each request has its own
        with environment_errors(config), first_task(environment) as episode:
            prompt = _first_prompt(config, environment, episode, policy)
    except ConfigError:
        return {"example_prompt": ""}
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        prompt = prompt[:MAX_PROMPT_CHARACTERS] + " …"
    return {"example_prompt": prompt, "is_conversation": is_conversation(environment)}


def _first_prompt(config: Config, environment: Environment, episode: Any, policy: Path) -> str:
    """The first prompt of an episode; of a conversation with all that the policy reads."""
    if not is_conversation(environment):
        return environment.prompt(environment.view(episode))
    prompter = load_prompter(policy, config.model.chat_options())
    codec = build_codec(prompter, tools_of(environment))
    opening = to_chat_messages(check_opening(episode.messages))
    return prompter.decode_exactly(codec.encode_prompt(opening))


def _read_evaluation(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--evaluation: {file} cannot be read: {error}") from None


def model_card(record: TrainingRecord, evaluation: Mapping[str, Any] | None) -> str:
    """The model card, as Markdown with the hub's metadata."""
    environment = short_name(record.config.env.name)
    turns = "each turn it gets one user message, and answers with a thought and an action"
    if record.is_conversation:
        turns = "it answers in words, or calls tools"
    lines = [
        *_metadata(record.config),
        f"# {environment} agent, after {format_updates(record.update)}",
        "",
        f"A policy for the environment `{environment}`, trained by reinforcement learning with "
        f"foray. It plays multi-turn episodes: {turns}.",
        "",
        *_results(record, evaluation),
        *_training(record),
        *_usage(record),
    ]
    return "\n".join(lines) + "\n"


def _metadata(config: Config) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    base_model = _base_model(config.model.name)
    if base_model:
        yield f"base_model: {base_model}"
    yield "tags:"
    for tag in ("reinforcement-learning", "agent", "foray", short_name(config.env.name)):
        yield f"- {tag}"
    yield "---"


def _base_model(name: str) -> str:
    """The name on the hub of the model that training began with; "" if it has none."""
    if is_hub_id(name) and not Path(name).exists():
        return name.partition("@")[0]
    return BASE_MODELS.get(name, "")


def _results(record: TrainingRecord, evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Results"
    yield ""
    if evaluation is not None:
        yield from _cited_evaluation(evaluation)
    if not record.evaluations:
        yield "The run made no evaluation up to this checkpoint."
        yield ""
        return
    yield "Success on held-out tasks during training, with 95 % intervals:"
    yield ""
    yield "| update | tasks | success | interval |"
    yield "|---|---|---|---|"
    for measured in record.evaluations:
        yield _evaluation_row(measured)
    yield ""


def _evaluation_row(measured: Record) -> str:
    update = f"{measured['update']:.0f}"
    success = measured["success"]
    if success is None:
        return f"| {update} | 0 | – | – |"
    interval = f"{measured['success_low']:.1%} – {measured['success_high']:.1%}"
    return f"| {update} | {measured['tasks']:.0f} | {success:.1%} | {interval} |"


def _cited_evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    environment = short_name(evaluation["environment"])
    manner = ""
    if "decoding" in evaluation:  # the expert has none
        manner = f", with {describe_decoding(Decoding(**evaluation['decoding']))}"
    if evaluation["samples"] > 1:
        manner += f", {evaluation['samples']} times each"
    tasks = evaluation["success"]["count"]
    yield f"Evaluated on {tasks} held-out tasks of {environment}{manner}:"
    yield ""
    yield "| tasks | played | success | interval |"
    yield "|---|---|---|---|"
    rows = {"all": evaluation["success"], **evaluation["success_by_type"]}
    rows |= {f"pass@{k}": share for k, share in evaluation["pass_at"].items()}
    for name, figures in evaluation.get("sets", {}).items():
        rows[f"set {name}"] = figures["success"]
    for name, share in rows.items():
        if share["mean"] is not None:
            yield (
                f"| {name} | {share['count']} | {share['mean']:.1%} | "
                f"{share['low']:.1%} – {share['high']:.1%} |"
            )
    yield ""


def describe_decoding(decoding: Decoding) -> str:
    """Say how responses are decoded, as `temperature 0.6, top_k 20, top_p 0.95`."""
    if decoding.greedy:
        return "temperature 0"
    return ", ".join(f"{name} {value:g}" for name, value in decoding._asdict().items())


def _training(record: TrainingRecord) -> Iterator[str]:
    config = record.config
    values = values_of(config)
    tokens = sum(update.get("trained_tokens") or 0 for update in record.updates)
    minutes = max((update["wall_seconds"] for update in record.updates), default=0.0) / 60
    yield "## Training"
    yield ""
    yield f"- start: `{config.model.name}`"
    yield f"- advantages: `{values['learner.algorithm.type']}`"
    yield f"- loss: `{values['learner.loss.type']}`"
    yield f"- control of exploration: `{config.control.mode}`"
    yield f"- staleness: at most {config.learner.largest_age()} versions"
    updates = format_updates(len(record.updates))
    yield f"- {updates} on {tokens:,.0f} tokens, in {minutes:.0f} minutes"
    if record.versions:
        yield f"- {', '.join(f'{name} {version}' for name, version in record.versions.items())}"
    yield ""
    yield "<details><summary>Settings that differ from the defaults</summary>"
    yield ""
    for name, (_, value) in find_changes(config).items():
        if not name.startswith(("run.", "dashboard.", "security.")):
            yield f"- `{name} = {json.dumps(value)}`"
    yield ""
    yield "</details>"
    yield ""


def _usage(record: TrainingRecord) -> Iterator[str]:
    decoding = record.config.decoding(evaluation=True)
    endpoint = "/v1/completions" if record.is_conversation else "/v1/chat/completions"
    arguments = "do_sample=False"
    if not decoding.greedy:
        values = (f"{name}={value:g}" for name, value in decoding._asdict().items())
        arguments = ", ".join(["do_sample=True", *values])
    yield "## Use"
    yield ""
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'directory = "."  # or the name on the hub'
    yield "tokenizer = AutoTokenizer.from_pretrained(directory)"
    yield "model = AutoModelForCausalLM.from_pretrained(directory)"
    yield from _encoding(record)
    yield f"decoding = dict({arguments})  # as in the run's evaluations"
    yield "output = model.generate("
    yield f"    **inputs, **decoding, max_new_tokens={record.config.sampling.max_tokens}"
    yield ")"
    yield "```"
    yield ""
    yield (
        f"Or serve it by `vllm serve .`, and ask `{endpoint}`, with {describe_decoding(decoding)}."
    )
    yield ""
    if record.example_prompt:
        yield "A prompt, as the policy was trained on them:"
        yield ""
        yield "~~~"
        yield record.example_prompt
        yield "~~~"
        yield ""


def _encoding(record: TrainingRecord) -> Iterator[str]:
    """Lines of Python that make tokens of a prompt."""
    model = record.config.model
    if record.is_conversation:
        yield "# a prompt as below"
        yield 'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")'
        return
    yield 'messages = [{"role": "user", "content": prompt}]  # as below'
    if model.system_prompt:
        yield f'messages.insert(0, {{"role": "system", "content": {model.system_prompt!r}}})'
    yield f"arguments = {model.template_arguments!r}  # of the chat template"
    yield "inputs = tokenizer.apply_chat_template("
    yield '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True,'
    yield "    **arguments,"
    yield ")"
