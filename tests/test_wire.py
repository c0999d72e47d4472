"""What crosses the socket between a server and a runner: exact, bounded, and refused when it is anything else."""

import asyncio
import random
import socket
import struct
from contextlib import asynccontextmanager, suppress

import pytest

from puna.core import errors
from puna.core.errors import BadFile, BadModel, BadRequest, BadSetting, ContextTooLong, Failure, RunnerDied
from puna.core.scheduler.engine import EngineOptions
from puna.core.scheduler.messages import Finished, Generate, Piece, SampledLogprob, TokenLogprob
from puna.core.scheduler.plan import Limits
from puna.core.scheduler.runner import RunnerFacts
from puna.core.scheduler.stats import EngineStats
from puna.core.scheduler.wire import (
    MAX_FRAME,
    Ask,
    Cancel,
    Channel,
    Close,
    Detokenize,
    FromRunner,
    FromServer,
    Hello,
    Load,
    Ready,
    Refused,
    Said,
    Status,
    Text,
    Tokenize,
    Tokens,
    WireError,
    pack,
)
from puna.core.tensor.sampling import BadLogits, SamplingParams

pytestmark = pytest.mark.asyncio

CANDIDATE = TokenLogprob(1, "\ufffd", b"\xc3", float("-inf"))
SAMPLING = SamplingParams(temperature=1e9, top_p=0.1, seed=-(2**63))
FROM_SERVER = [
    Hello(1),
    Load(files={"a.gguf": "/a"}, options=EngineOptions(Limits(64, 8), 2, "q8_0", 4096, True, False), plugins=("x",)),
    Ask(7, Generate(prompt=[0, 2**31], num_ctx=5, stop=["\n", "ö"], logprobs=0, sampling=SAMPLING, client="me")),
    Cancel(7),
    Tokenize(2**40, "text\0", True, False),
    Detokenize(8, []),
    Close(),
]
FROM_RUNNER = [
    Ready(RunnerFacts("llama", 4096, 419, 10**12, frozenset({"image"}))),
    Said(7, Piece("ö", [1], [SampledLogprob(CANDIDATE, [CANDIDATE])])),
    Said(7, Finished(reason="cancelled", prompt_tokens=1, prompt_ns=2, tokens=3, decode_ns=4, preempted=5)),
    Tokens(8, [1, 2]),
    Text(8, "x"),
    Refused(0, "BadModel", "no"),
    Status(EngineStats(steps=5, held_bytes=2**50), 99),
]


@asynccontextmanager
async def ends():
    """The server's channel and the runner's."""
    ours, theirs = socket.socketpair()
    server, runner = await Channel.over(ours, FromRunner), await Channel.over(theirs, FromServer)
    try:
        yield server, runner
    finally:
        await server.close()
        await runner.close()


@asynccontextmanager
async def channel_from(data):
    """The server's channel, behind which somebody has sent bytes and left."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
    channel = await Channel.over(ours, FromRunner)
    try:
        yield channel
    finally:
        await channel.close()


async def test_every_message_arrives_as_it_was_sent():
    async with ends() as (server, runner):
        for messages, sender, receiver in ((FROM_SERVER, server, runner), (FROM_RUNNER, runner, server)):
            for message in messages:
                await sender.send(message)
            assert [await receiver.receive() for _ in messages] == messages


async def test_a_message_as_large_as_is_allowed_arrives_and_a_larger_one_is_refused_before_it_is_sent():
    async with ends() as (server, runner):
        largest = Text(1, "x" * (MAX_FRAME - 64))
        sending = asyncio.create_task(runner.send(largest))
        assert await server.receive() == largest
        await sending
        with pytest.raises(BadRequest, match="too large: at most 134217728"):
            await runner.send(Text(1, "x" * MAX_FRAME))
        await runner.send(Text(2, "still here"))
        assert await server.receive() == Text(2, "still here")


@pytest.mark.parametrize("message", [Detokenize(1, [2**70]), Tokenize(1, "\ud800", True, True)])
async def test_what_no_frame_can_hold_is_the_callers_mistake(message):
    with pytest.raises(BadRequest, match="cannot be handed to the model"):
        pack(message)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack(">I", MAX_FRAME + 1), f"a message of {MAX_FRAME + 1} bytes"),
        (struct.pack(">I", 1) + b"\xc1", "a message that is none"),
        (struct.pack(">I", 0), "a message that is none"),
        (pack(Close()), "a message that is none: Invalid value 'Close'"),
        (pack(Hello(1))[:-1] + b"\xa1", "a message that is none"),
    ],
)
async def test_bytes_that_are_no_message_are_refused(data, words):
    async with channel_from(data) as channel:
        with pytest.raises(WireError, match=words):
            await channel.receive()


async def test_damaged_messages_are_refused_or_are_other_messages():
    dice = random.Random(1)
    for message in FROM_RUNNER * 40:
        data = bytearray(pack(message))
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(4, len(data))] = dice.randrange(256)
        async with channel_from(data) as channel:
            with suppress(WireError):
                assert isinstance(await channel.receive(), FromRunner)


@pytest.mark.parametrize("count", [0, 3, 4, 10])
async def test_a_message_that_breaks_off_is_the_end(count):
    async with channel_from(pack(Text(1, "some text"))[:count]) as channel:
        assert await channel.receive() is None


async def test_another_version_is_named():
    async with ends() as (server, runner):
        await runner.send(Hello(99))
        with pytest.raises(WireError, match=r"Hello\(version=99\), expected Hello\(version=1\)"):
            await server.greet()


async def test_sending_to_a_side_that_has_gone_does_nothing():
    async with ends() as (server, runner):
        await runner.close()
        for _ in range(20):
            await server.send(Tokenize(1, "x" * 100_000, True, True))
            server.send_soon(Cancel(1))
        assert await server.receive() is None


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("no"),
        ContextTooLong(tokens=70, limit=10),
        BadModel("tensors are missing: a; b"),
        BadFile("/m.gguf", "is empty"),
        BadSetting(name="PUNA_X", value="y", allowed="z"),
        RunnerDied("gone"),
    ],
)
async def test_an_exception_crosses_with_its_class_its_words_and_its_numbers(error):
    async with ends() as (server, runner):
        await runner.send(Refused.because(3, error))
        found = (await server.receive()).error
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


async def test_an_exception_of_another_module_crosses_as_the_class_it_is_a_kind_of():
    found = Refused.because(3, BadLogits(4, "holds NaN")).error
    assert (type(found), str(found)) == (BadModel, "row 4 of the model's logits holds NaN")


@pytest.mark.parametrize("kind", ["Nonsense", "__doc__", "", "annotations"])
async def test_a_class_that_does_not_exist_is_a_plain_failure(kind):
    assert type(Refused(1, kind, "why").error) is Failure


async def test_every_class_of_errors_is_one_of_its_own_kind():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert all(type(Refused(1, kind.__name__, "why").error) is kind for kind in kinds)
