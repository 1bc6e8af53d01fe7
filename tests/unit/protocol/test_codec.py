"""Frames between processes: what goes in comes out.

Nothing that comes in from outside can raise anything but BadFrame.
"""

from __future__ import annotations

import logging
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from protocol import codec, messages
from protocol.codec import BadFrame, FrameReader, decode, encode
from protocol.frames import AnyMessage

TYPES = typing.get_args(AnyMessage)
PREFIX = encode(messages.Credit(episodes=1))[:3]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
"""Any value that msgpack can hold."""


def values_of(kind: inspect.Type) -> st.SearchStrategy:
    """Values of a message field's type."""
    match kind:
        case inspect.IntType():
            return st.integers(-(2**63), 2**63 - 1)
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.StrType():
            return st.text(max_size=20)
        case inspect.BoolType():
            return st.booleans()
        case inspect.BytesType():
            return st.binary(max_size=20)
        case inspect.NoneType():
            return st.none()
        case inspect.AnyType():
            return st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5)
        case inspect.EnumType(cls=cls):
            return st.sampled_from(cls)
        case inspect.UnionType(types=kinds):
            return st.one_of([values_of(one) for one in kinds])
        case inspect.ListType(item_type=item):
            return st.lists(values_of(item), max_size=3)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(values_of, items))
        case inspect.VarTupleType(item_type=item):
            return st.lists(values_of(item), max_size=3).map(tuple)
        case inspect.DictType(key_type=inspect.AnyType(), value_type=value):
            return st.dictionaries(st.text(max_size=5), values_of(value), max_size=3)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values_of(key), values_of(value), max_size=3)
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values_of(field.type) for field in fields})
    if isinstance(kind, msgspec.inspect.LiteralType):
        return st.sampled_from(kind.values)
    raise TypeError(f"no values for {kind}: teach this test its type")


def all_messages() -> st.SearchStrategy:
    return st.one_of([values_of(inspect.type_info(kind)) for kind in TYPES])


def test_every_message_type_can_be_decoded() -> None:
    assert set(messages.Message.__subclasses__()) == set(TYPES)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_a_message_comes_back_as_it_went(kind: type) -> None:
    @given(values_of(inspect.type_info(kind)))
    def round_trip(message: messages.Message) -> None:
        assert decode(encode(message)) == message

    round_trip()


def decodes_or_is_a_bad_frame(frame: bytes) -> bool:
    try:
        return isinstance(decode(frame), messages.Message)
    except BadFrame:
        return True


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_bad_frame(data: bytes) -> None:
    assert decodes_or_is_a_bad_frame(data)
    assert decodes_or_is_a_bad_frame(PREFIX + data)


@given(anything)
def test_arbitrary_msgpack_raises_only_bad_frame(value: object) -> None:
    assert decodes_or_is_a_bad_frame(PREFIX + msgspec.msgpack.encode(value))


@given(st.sampled_from(TYPES), st.lists(anything, max_size=10))
def test_a_message_with_arbitrary_fields_raises_only_bad_frame(kind: type, fields: list) -> None:
    assert decodes_or_is_a_bad_frame(PREFIX + msgspec.msgpack.encode([kind.__name__, *fields]))


@given(all_messages(), st.data())
def test_a_damaged_frame_raises_only_bad_frame(
    message: messages.Message, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert decodes_or_is_a_bad_frame(bytes(frame))


@given(all_messages(), st.data())
def test_a_frame_cut_short_is_a_bad_frame(message: messages.Message, data: st.DataObject) -> None:
    frame = encode(message)
    with pytest.raises(BadFrame):
        decode(frame[: data.draw(st.integers(0, len(frame) - 1))])


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000,
        b"\x81\x01" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xa2\xff\xfe",
        b"\x81\x80\x01",
        b"\xd7\xff" + b"\xff" * 8,
    ],
    ids=[
        "deep arrays",
        "deep maps",
        "array of 4 G",
        "bytes of 4 G",
        "no UTF-8",
        "a map as a key",
        "a bad time stamp",
    ],
)
def test_a_hostile_value_in_a_free_field_is_a_bad_frame(body: bytes) -> None:
    fields = [
        b"\xa7Welcome",
        b"\xa1e",
        b"\x81\xa1k" + body,
    ]  # the settings of the environment may hold anything
    with pytest.raises(BadFrame):
        decode(PREFIX + b"\x99" + b"".join(fields))


def test_a_frame_of_another_schema_is_refused_and_both_schemas_are_named() -> None:
    frame = encode(messages.Credit(episodes=1))
    other = frame[:1] + (messages.SCHEMA_VERSION + 1).to_bytes(2, "little") + frame[3:]
    with pytest.raises(
        BadFrame, match=rf"schema {messages.SCHEMA_VERSION + 1}, .* {messages.SCHEMA_VERSION}$"
    ):
        decode(other)


def test_a_frame_of_another_program_is_refused() -> None:
    with pytest.raises(BadFrame, match="no message of this project"):
        decode(b"GET / HTTP/1.1\r\n")


def test_a_frame_that_is_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME", 10)
    frame = encode(messages.Shutdown(reason="the run has ended"))
    with pytest.raises(BadFrame, match=f"{len(frame)} bytes is more than 10"):
        decode(frame)


def test_a_reader_hands_on_good_frames() -> None:
    reader = FrameReader()
    message = messages.Credit(episodes=3)
    assert reader.read(b"actor-1", encode(message)) == message
    assert reader.dropped_frames == 0


def test_a_reader_counts_every_bad_frame_and_warns_once_per_peer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = FrameReader()
    with caplog.at_level(logging.WARNING, logger="protocol.codec"):
        results = [
            reader.read(peer, b"nonsense") for peer in (b"one", b"two", b"one", b"one", b"two")
        ]
    assert results == [None] * 5
    assert reader.dropped_frames == 5
    assert ["'one'" in record.getMessage() for record in caplog.records] == [True, False]


def test_a_reader_goes_on_after_a_bad_frame() -> None:
    reader = FrameReader()
    message = messages.Credit(episodes=3)
    assert reader.read(b"actor-1", b"nonsense") is None
    assert reader.read(b"actor-1", encode(message)) == message
