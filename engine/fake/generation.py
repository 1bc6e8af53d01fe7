"""Generation for the fake engine: a transformers model, token by token, requests in turns.

A step advances every running request by one token. Each request has its own KV cache and its own
random generator, and its logits are computed alone, so a response depends on its prompt, its seed
and the weights, and on nothing that runs beside it. Between two forward passes the event loop runs:
pauses, aborts and commands take effect there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from controller.rules.scores import Signal
from controller.rules.thinking import ThinkingRule
from engine.plugin.file_check import FileIdentity, check_identity
from engine.plugin.signal_socket import ForcedQueue, SignalSocket, build_rows, takes_effect
from engine.plugin.uncertainty import divide_by_temperature, uncertainty
from engine.plugin.weight_file import check_tensors, tensor_shapes, tensors
from engine.responses import NO_LOG_PROB
from protocol.security import HEARTBEAT_SECONDS


@dataclass(eq=False)
class Request:
    """One response in the making."""

    id: str
    prompt: list[int]
    max_tokens: int
    temperature: float
    stop: frozenset[int]
    turn_id: str | None  # set: watched
    seed: int | None
    rule: ThinkingRule | None = None  # carried out here
    queue: list[int] = field(default_factory=list)  # what its intervention forces
    pattern: int = 0  # tokens of the longest pattern whose repetition ends it
    min_count: int = 0
    top_k: int = 0  # likeliest tokens that are left to choose from; 0: all
    top_p: float = 1.0  # probability that those left have, of these
    listed: int = 0  # candidates to report of each token, the sampled one among them
    top: list[list[dict]] = field(default_factory=list)  # these, for each token
    grown: asyncio.Event = field(default_factory=asyncio.Event)  # there is another token, or an end
    cache: DynamicCache | None = None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)  # weights that produced each token
    forced: ForcedQueue = field(default_factory=ForcedQueue)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self.random = torch.Generator()
        if self.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(self.seed)

    def observe(self, values: list[float]) -> Signal:
        """Build the signal of the next token from entropy, confidence and top-1 log-prob.

        The request's own rule may force the token.
        """
        position = len(self.tokens)
        entropy, confidence, top_log_prob = values
        signal = Signal(
            position,
            entropy,
            confidence,
            top_log_prob,
            self.forced.at(position),
            self.tokens[-1] if self.tokens else -1,
        )
        if self.rule is not None and self.rule.observe(signal) is not None:
            self.forced.add(position, self.queue)
            signal = signal._replace(forced=self.forced.at(position))
        return signal

    def repeats(self) -> bool:
        """Say whether the end is one pattern, `min_count` times on end.

        A pattern has at most `pattern` tokens.
        """
        for size in range(1, self.pattern + 1):
            tail = self.tokens[-size * self.min_count :]
            if len(tail) == size * self.min_count and tail == tail[-size:] * self.min_count:
                return True
        return False

    def finish(self, reason: str) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self.finished.set()
            self.grown.set()


class Generator:
    """The model, the requests that run, and the loop that advances them."""

    def __init__(
        self,
        model_dir: Path,
        signals: str | None,
        top_j: int,
        keys: str = "",
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        torch.set_num_threads(1)  # passes as small as these only wait for a second thread
        self._model_dir = model_dir
        self.model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, trust_remote_code=False
        ).eval()
        self._top_j = top_j
        self._socket: SignalSocket | None = None
        if signals:
            self._socket = SignalSocket(signals, keys=keys, heartbeat_seconds=heartbeat_seconds)
        self.requests: list[Request] = []
        self.version = "default"
        self.paused = False
        self._wake = asyncio.Event()
        self._between_steps = asyncio.Event()

    @property
    def vocabulary(self) -> int:
        return self.model.config.vocab_size

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a response."""
        end = self.model.generation_config.eos_token_id
        if end is None:
            return frozenset()
        if isinstance(end, list):
            return frozenset(end)
        return frozenset([end])

    def add(self, request: Request) -> None:
        """Start a response; `request.finished` is set when it is complete."""
        self.requests.append(request)
        self._wake.set()

    async def pause(self) -> None:
        """Wait until no step is under way; none will be until `resume`."""
        self.paused = True
        self._wake.set()
        await self._between_steps.wait()

    def resume(self) -> None:
        self.paused = False
        self._wake.set()

    async def sleep(self) -> None:
        """Pause, and forget what has been computed of the requests: it is computed again."""
        await self.pause()
        for request in self.requests:
            request.cache = None

    def load(self, path: Path, identity: FileIdentity) -> None:
        """Load new weights, and keep the KV caches.

        Raises ValueError, with the old ones in place, when the file is not the one that was hashed.
        """
        check_identity(path, identity)
        check_tensors(path, tensor_shapes(self._model_dir))
        self.model.load_state_dict(dict(tensors(path)), strict=False)  # a tied head is in no file

    def weights(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    async def run(self) -> None:
        """Run steps forever, while there is something to do."""
        try:
            while True:
                self.requests = [
                    request for request in self.requests if request.finish_reason is None
                ]
                if self.paused or not self.requests:
                    self._between_steps.set()
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                self._between_steps.clear()
                await self._step(list(self.requests))
        finally:
            for request in self.requests:
                request.finish("error")
            if self._socket is not None:
                self._socket.close()

    async def _step(self, running: list[Request]) -> None:
        """Generate one token for each request.

        As in vLLM, what arrives during a step acts at its end: commands before it samples.
        """
        logits = []
        for request in running:
            logits.append(self.compute_logits(request))
            await asyncio.sleep(0)
        alive = [
            (request, row)
            for request, row in zip(running, logits, strict=True)
            if request.finish_reason is None
        ]
        if not alive:
            return
        running = [request for request, _ in alive]
        temperatures = torch.tensor([request.temperature for request in running])
        scaled = divide_by_temperature(torch.stack([row for _, row in alive]), temperatures)
        forced = self._watch(running, scaled)
        for request, row, token in zip(running, scaled, forced, strict=True):
            self._append(request, row, token)

    @torch.inference_mode()
    def compute_logits(self, request: Request) -> torch.Tensor:
        """Compute float32 [V] after the last token so far; the first call reads the prompt."""
        new = request.tokens[-1:] or request.prompt
        if request.cache is None:
            request.cache = DynamicCache(config=self.model.config)
            new = [*request.prompt, *request.tokens]
        start = len(request.prompt) + len(request.tokens) - len(new)
        output = self.model(
            input_ids=torch.tensor([new]),
            position_ids=torch.arange(start, start + len(new)).unsqueeze(0),
            past_key_values=request.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1].float()

    def _watch(self, running: list[Request], scaled: torch.Tensor) -> list[int]:
        """Send this step's signals, from `scaled` [R, V].

        Returns the token to force for each request, or -1.
        """
        if self._socket is None:
            return [-1] * len(running)
        turns = {request.turn_id: request for request in running if request.turn_id is not None}
        for command in self._socket.receive_commands():
            request = turns.get(command.turn_id)
            if request is not None and takes_effect(command, request.tokens, self.vocabulary):
                request.forced.add(len(request.tokens), command.tokens)
        columns = torch.stack(uncertainty(scaled, self._top_j)).T.tolist()
        seen = [
            (request.turn_id, request.observe(values))
            for request, values in zip(running, columns, strict=True)
        ]
        watched = [(turn_id, signal) for turn_id, signal in seen if turn_id is not None]
        self._socket.send(
            build_rows([turn_id for turn_id, _ in watched], [signal for _, signal in watched])
        )
        return [signal.forced for _, signal in seen]

    def _append(self, request: Request, logits: torch.Tensor, forced: int) -> None:
        """Sample from `logits` [V] (after temperature), or take the forced token.

        The log-prob of that is 0, as in vLLM; others are of what was left to choose from.
        """
        logits = keep_likeliest(logits, request.top_k, request.top_p)
        log_probs = torch.log_softmax(logits, -1)
        if forced >= 0:
            token = forced
            log_prob = 0.0
        elif log_probs.isnan().any():  # some token or other, as of vLLM
            token = 0
            log_prob = NO_LOG_PROB
        else:
            choice = logits.argmax()
            if request.temperature > 0:
                choice = torch.multinomial(log_probs.exp(), 1, generator=request.random)
            token = int(choice)
            log_prob = log_probs[token].item()
        request.tokens.append(token)
        request.log_probs.append(log_prob)
        candidates = []
        if request.listed and log_prob > NO_LOG_PROB:
            candidates = _list_candidates(log_probs, token, request.listed)
        request.top.append(candidates)
        request.grown.set()
        request.versions.append(self.version)
        if token in request.stop:
            request.finish("stop")
        elif request.pattern and request.repeats():
            request.finish("repetition")
        elif len(request.tokens) >= request.max_tokens:
            request.finish("length")


def keep_likeliest(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Leave the likeliest tokens of `logits` [V] to choose from, and make others impossible.

    As in vLLM (`apply_top_k_top_p`): first `top_k` tokens (0: all; more where some are as likely as
    the last one), then, of these, the fewest that have the probability `top_p`.
    """
    if 0 < top_k < len(logits):
        least = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ascending, tokens = logits.sort()
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        removed[-1] = False
        logits = logits.masked_fill(removed.scatter(0, tokens, removed), float("-inf"))
    return logits


def _list_candidates(log_probs: torch.Tensor, token: int, count: int) -> list[dict]:
    """List candidates as vLLM does: the sampled token, then the most likely others by rank.

    The list is cut at `count`, and what is impossible has NO_LOG_PROB.
    """
    values, tokens = log_probs.clamp(min=NO_LOG_PROB).topk(min(count, len(log_probs)))
    rank = int((log_probs > log_probs[token]).sum()) + 1
    ranked = [
        {"token_id": t, "logprob": lp, "rank": r}
        for r, (t, lp) in enumerate(zip(tokens.tolist(), values.tolist(), strict=True), 1)
    ]
    first = {"token_id": token, "logprob": log_probs[token].item(), "rank": rank}
    return [first, *(other for other in ranked if other["token_id"] != token)][:count]
