"""The endpoint as OpenAI's own client finds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest

from actors.endpoint import Endpoint, Session
from actors.harness_run import build_client
from protocol.openai_answers import Answered, Choice
from tests.fixtures.harnesses import QUESTION, ask

ANSWER = Answered([Choice({"role": "assistant", "content": "4"}, "stop", 1)], 3)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with closing(Endpoint()) as endpoint:
        endpoint.start()
        yield endpoint


@pytest.fixture
def session(endpoint: Endpoint) -> Session:
    return endpoint.open_session()


async def test_server_is_on_the_loopback_alone(endpoint: Endpoint) -> None:
    assert endpoint.base_url.startswith("http://127.0.0.1:")


async def test_models_are_the_policy(session: Session) -> None:
    async with build_client(session) as client:
        assert [model.id async for model in client.models.list()] == ["policy"]
        assert (await client.models.retrieve("policy")).id == "policy"


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_request_without_a_key_is_not_authenticated(session: Session, key: str) -> None:
    async with build_client(session) as client:
        stranger = client.with_options(api_key=key or "none")
        with pytest.raises(openai.AuthenticationError, match="API key"):
            await ask(stranger)


async def test_key_of_an_episode_that_is_over_is_worth_nothing(endpoint: Endpoint) -> None:
    session = endpoint.open_session()
    endpoint.close_session(session)
    async with build_client(session) as client:
        with pytest.raises(openai.AuthenticationError):
            await ask(client)


async def test_request_is_one_of_its_own_session(endpoint: Endpoint, session: Session) -> None:
    other = endpoint.open_session()
    async with build_client(session) as client:
        asking = asyncio.create_task(ask(client))
        asked = await asyncio.to_thread(session.take, 5.0)
        assert asked.request.messages == QUESTION
        assert other.take(0.0) is None
        asked.resolve(ANSWER)
        assert (await asking).usage.total_tokens == 4


async def test_requests_are_refused_once_the_episode_is_over(
    endpoint: Endpoint, session: Session
) -> None:
    async with build_client(session) as client:
        asking = asyncio.create_task(ask(client))
        await asyncio.to_thread(session.take, 5.0)
        endpoint.close_session(session)
        with pytest.raises(openai.APIStatusError, match="the episode is over"):
            await asking


async def test_client_that_goes_leaves_a_request_that_is_done(session: Session) -> None:
    async with build_client(session) as client:
        asking = asyncio.create_task(ask(client))
        asked = await asyncio.to_thread(session.take, 5.0)
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.to_thread(_wait_done, asked)
    asked.resolve(ANSWER)  # which nobody reads


def _wait_done(asked: Any) -> None:
    with pytest.raises(BaseException):  # noqa: B017  canceled, whatever it is called
        asked.answer.result(5.0)


CALLS = [
    {"id": f"call0000{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for number in range(2)
]


async def test_streamed_answer_is_put_together_by_the_client(session: Session) -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "hm", "tool_calls": CALLS}
    choices = [Choice(message, "tool_calls", 3), Choice({"content": "5"}, "stop", 1)]
    async with build_client(session) as client:
        streaming = asyncio.create_task(read_stream(client))
        (await asyncio.to_thread(session.take, 5.0)).resolve(Answered(choices, 7))
        said, calls, reasons, usage = await streaming
    assert said == {0: "4", 1: "5"}
    assert calls == {0: ("call00000", "f", "{}"), 1: ("call00001", "f", "{}")}
    assert reasons == {0: "tool_calls", 1: "stop"}
    assert usage.total_tokens == 11


async def read_stream(client: Any) -> Any:
    """Put a stream together as OpenAI's guide does."""
    said: dict[int, str] = {}
    calls: dict[int, tuple[str, str, str]] = {}
    reasons: dict[int, str] = {}
    usage = None
    stream = await ask(client, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
            for call in choice.delta.tool_calls or []:
                before = calls.get(call.index, ("", "", ""))
                parts = (call.id, call.function.name, call.function.arguments)
                joined = [old + (new or "") for old, new in zip(before, parts, strict=True)]
                calls[call.index] = (joined[0], joined[1], joined[2])
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return said, calls, reasons, usage


async def test_stream_helper_of_the_client_reads_the_same(session: Session) -> None:
    async with build_client(session) as client:
        reading = asyncio.create_task(read_helper(client))
        message = {"role": "assistant", "content": None, "tool_calls": CALLS}
        answered = Answered([Choice(message, "tool_calls", 3)], 7)
        (await asyncio.to_thread(session.take, 5.0)).resolve(answered)
        (choice,) = (await reading).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["f", "f"]
    assert choice.finish_reason == "tool_calls"


async def read_helper(client: Any) -> Any:
    async with client.chat.completions.stream(model="policy", messages=QUESTION) as stream:
        return await stream.get_final_completion()


async def test_client_that_goes_in_mid_stream_leaves_the_server_well(session: Session) -> None:
    long = Answered([Choice({"content": "x" * 2_000_000}, "stop", 1)] * 4, 7)
    async with build_client(session) as client:
        opening = asyncio.create_task(ask(client, stream=True))
        (await asyncio.to_thread(session.take, 5.0)).resolve(long)
        stream = await opening
        async for _ in stream:
            break
        await stream.close()
    async with build_client(session) as client:
        assert [model.id async for model in client.models.list()] == ["policy"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_completion_is_a_text(session: Session, is_streamed: bool) -> None:
    async with build_client(session) as client:
        asking = asyncio.create_task(
            client.completions.create(model="policy", prompt="2 + 2 is", stream=is_streamed)
        )
        asked = await asyncio.to_thread(session.take, 5.0)
        assert asked.request.prompt == "2 + 2 is"
        asked.resolve(ANSWER)
        answer = await asking
        if is_streamed:
            (answer,) = [chunk async for chunk in answer]
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("4", "stop")


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "'policy'"),
        ({"logit_bias": {"1": 1}}, openai.BadRequestError, "did not choose"),
        ({"n": 1000}, openai.BadRequestError, "1 to 128"),
    ],
)
async def test_errors_are_those_of_the_official_client(
    session: Session, settings: dict[str, Any], kind: type[Exception], words: str
) -> None:
    async with build_client(session) as client:
        with pytest.raises(kind, match=words) as raised:
            await client.chat.completions.create(
                **{"model": "policy", "messages": QUESTION} | settings
            )
    assert raised.value.type == "invalid_request_error"  # type: ignore[attr-defined]


async def test_what_is_not_there_is_said_in_the_same_form(session: Session) -> None:
    async with build_client(session) as client:
        with pytest.raises(openai.NotFoundError, match="no POST /v1/embeddings"):
            await client.embeddings.create(model="policy", input="a")


async def test_ignored_parameters_are_logged_once(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    async with build_client(session) as client:
        for _ in range(2):
            asking = asyncio.create_task(ask(client, seed=5))
            (await asyncio.to_thread(session.take, 5.0)).resolve(ANSWER)
            await asking
    assert caplog.text.count("sets seed, which is ignored: run.seed decides") == 1


@pytest.mark.parametrize(("body", "status"), [({"reward": 0.5}, 200), ({"reward": "x"}, 400)])
async def test_reward_is_taken_by_post(session: Session, body: Any, status: int) -> None:
    async with build_client(session) as client:
        try:
            await client.post("/reward", body=body, cast_to=object)
        except openai.BadRequestError as error:
            assert "NUMBER" in str(error)
    assert session.posted == (0.5 if status == 200 else None)
