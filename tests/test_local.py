"""A model in a process of its own: the same replies, and no harm to anybody else however the process ends."""

import asyncio
import gc
import os
import signal
import sys
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from puna.cli.serve import RUNNER
from puna.core.errors import BadRequest, Busy, ContextTooLong, Failure, RunnerDied
from puna.core.kernel import Kernel
from puna.core.scheduler.child import Child, words_of_end
from puna.core.scheduler.inline import InlineRunner
from puna.core.scheduler.local import LocalRunner
from puna.core.scheduler.messages import Piece
from puna.core.scheduler.models import ModelFiles
from puna.core.scheduler.pulse import Pulse
from puna.core.scheduler.wire import Load
from puna.core.settings import Settings
from puna.core.tensor.sampling import SamplingParams
from puna.plugins import llama

from .test_engine import GGUF, SHORT, TEXT, ask, outcome, small_options

pytestmark = pytest.mark.asyncio

ENDLESS = "tests.endless_runner"  # modules that take the place of RUNNER
STUCK = "tests.stuck_runner"


def load(path=GGUF, **options):
    return Load(files={GGUF.name: str(path)}, options=small_options(**options))


@asynccontextmanager
async def started(entry=RUNNER, **options):
    runner = await LocalRunner.start(entry, load(**options))
    try:
        yield runner
    finally:
        await runner.close()


@asynccontextmanager
async def kernel_of(entry, **settings):
    kernel = Kernel(Settings(**settings), TEXT, entry)
    try:
        yield kernel
    finally:
        await kernel.close()


def lease(kernel):
    return kernel.models.lease(ModelFiles("a", {GGUF.name: GGUF}), name="a")


def endless(runner):
    return runner.generate(ask(SHORT["ids"], max_tokens=None, num_ctx=64))


async def until(condition, within_s=30.0):
    """Wait for what happens in another process; fail if it takes too long."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.01)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def gone(*pids):
    """Fail if a process is there after two seconds."""
    await until(lambda: all(map(is_gone, pids)), within_s=2.0)


def held():
    """What a leak would add to: open files, tasks, child processes."""
    gc.collect()  # tests before this one may have left something for it
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks()), psutil.Process().children()


# ---- the same as inline --------------------------------------------------------------------------------------------


def told(found):
    """What a client learns of a reply, without how long it took."""
    end = found.finished
    return found.text, found.tokens, found.logprobs, (end.reason, end.prompt_tokens, end.tokens, end.truncated)


@pytest.fixture(scope="module")
def inline():
    runner = InlineRunner(GGUF, llama.architectures(), TEXT, small_options())
    yield runner
    asyncio.run(runner.close())


async def test_replies_are_those_of_a_runner_in_this_process(inline):
    seeded = SamplingParams(temperature=1.2, seed=5)
    requests = [{}, {"logprobs": 2}, {"sampling": seeded, "max_tokens": 30}, {"stop": ["a"]}, {"num_ctx": 8}]
    async with started() as runner:
        assert runner.facts == inline.facts
        for request in requests:
            assert told(await outcome(runner, SHORT["ids"], **request)) == told(
                await outcome(inline, SHORT["ids"], **request)
            )
        together = await asyncio.gather(*(outcome(runner, SHORT["ids"], **request) for request in requests * 4))
        alone = [told(await outcome(inline, SHORT["ids"], **request)) for request in requests]
        assert [told(found) for found in together] == alone * 4


async def test_text_becomes_tokens_and_back_as_in_this_process(inline):
    text = "<|begin_of_text|>the ☃ and " + "x" * 100_000
    async with started() as runner:
        for marks in ({}, {"special": False}, {"start": False}):
            assert await runner.tokenize(text, **marks) == await inline.tokenize(text, **marks)
        assert await runner.detokenize([1, 2, 300]) == await inline.detokenize([1, 2, 300])


async def refusal(work):
    try:
        await work
    except Failure as error:
        return type(error), str(error), vars(error)
    return None


async def test_mistakes_are_told_as_in_this_process(inline):
    async with started() as runner:
        for make in (
            lambda runner: runner.detokenize([10**6]),
            lambda runner: outcome(runner, []),
            lambda runner: outcome(runner, [-1]),
            lambda runner: outcome(runner, SHORT["ids"], stop=["x" * 10_000]),
            lambda runner: outcome(runner, [1] * 70, num_ctx=10, truncate=False),
        ):
            found = await refusal(make(runner))
            assert found == await refusal(make(inline))
        assert found[0] is ContextTooLong
        with pytest.raises(BadRequest, match="cannot be handed"):
            await runner.detokenize([2**70])
        assert (await outcome(runner, SHORT["ids"])).tokens == SHORT["greedy"]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "renamed"])
async def test_a_model_that_cannot_be_loaded_is_told_as_in_this_process(tmp_path, damage):
    path, data = tmp_path / GGUF.name, GGUF.read_bytes()
    if damage != "missing":
        path.write_bytes({"cut": data[:-1000], "empty": b"", "renamed": data.replace(b"llama", b"lloma")}[damage])
    before = held()

    found = await refusal(LocalRunner.start(RUNNER, load(path)))
    await until(lambda: held() == before)
    async with kernel_of(None, runner="inline") as kernel:
        expected = await refusal(kernel.models.lease(ModelFiles("a", {GGUF.name: path}), name="a").__aenter__())
    assert found is not None and found[:2] == expected[:2]


# ---- what is held for readers, and cancelled -----------------------------------------------------------------------


async def test_a_reply_whose_reader_leaves_frees_its_place():
    async with started(ENDLESS, sequences=1) as runner:
        async with aclosing(endless(runner)) as leaving:
            await anext(leaving)
        leaver = asyncio.create_task(outcome(runner, SHORT["ids"], max_tokens=None, num_ctx=64))
        await until(lambda: runner.stats.running)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert (await asyncio.wait_for(outcome(runner, SHORT["ids"]), 60)).tokens == SHORT["greedy"]


async def test_a_reader_that_never_reads_is_bounded_and_holds_up_nobody(monkeypatch):
    monkeypatch.setattr("puna.core.scheduler.outbox.MAX_UNREAD", 2000)
    async with started(ENDLESS, sequences=2) as runner:
        sleepers = [endless(runner), endless(runner)]
        for sleeper in sleepers:
            await anext(sleeper)
        # There are two places, so this reply can only come once a sleeper has been given up.
        assert (await asyncio.wait_for(outcome(runner, SHORT["ids"]), 60)).tokens == SHORT["greedy"]
        await until(lambda: not runner.stats.running)
        for sleeper in sleepers:
            unread = await anext(sleeper)
            assert 0 < len(unread.tokens) <= 2000 // 8
            with pytest.raises(BadRequest, match="its client left 0 MB of it unread"):
                await anext(sleeper)


async def test_what_it_holds_is_reported():
    async with started(ENDLESS) as runner:
        assert runner.memory_bytes == runner.facts.weight_bytes
        async with aclosing(endless(runner)) as talking:
            async for _ in talking:
                if runner.stats.running == 1:
                    break
        assert runner.memory_bytes > runner.facts.weight_bytes
        await until(lambda: runner.stats.finished and not runner.stats.held_blocks)


# ---- the end of a process ------------------------------------------------------------------------------------------


async def test_closing_ends_the_replies_in_progress_and_those_that_come_too_late():
    before = held()
    runner = await LocalRunner.start(ENDLESS, load())
    talking = endless(runner)
    await anext(talking)
    await runner.close()
    assert [event async for event in talking][-1].reason == "cancelled"
    with pytest.raises(Busy, match="was unloaded"):
        await outcome(runner, SHORT["ids"])
    await runner.close()  # a second time changes nothing
    assert runner.death is None
    await until(lambda: held() == before)


async def test_signals_that_ask_a_server_to_end_are_left_to_the_server():
    async with started() as runner:
        os.kill(runner.pid, signal.SIGTERM)
        os.kill(runner.pid, signal.SIGINT)
        assert (await outcome(runner, SHORT["ids"])).tokens == SHORT["greedy"]


async def test_a_process_that_does_not_end_when_it_should_is_ended(monkeypatch):
    monkeypatch.setattr("puna.core.scheduler.local.GRACE_S", 0.1)
    runner = await LocalRunner.start(ENDLESS, load())
    talking = endless(runner)
    await anext(talking)
    os.kill(runner.pid, signal.SIGSTOP)
    await runner.close()
    with pytest.raises(Busy, match="was unloaded"):
        async for _ in talking:
            pass
    await gone(runner.pid)


async def read_until_it_fails(runner, events):
    async for event in events:
        assert isinstance(event, Piece)


async def test_a_runner_that_is_killed_ends_its_requests_in_words_and_the_next_request_works():
    async with kernel_of(ENDLESS, num_parallel=4, context_length=256) as kernel:
        async with lease(kernel) as runner:
            await outcome(runner, SHORT["ids"])
        before = held()[:2]
        for _ in range(5):
            async with lease(kernel) as runner:
                talking = [endless(runner) for _ in range(4)]
                for events in talking:
                    await anext(events)
                os.kill(runner.pid, signal.SIGKILL)
                for events in talking:
                    with pytest.raises(RunnerDied, match="its process was ended by SIGKILL"):
                        await read_until_it_fails(runner, events)
                with pytest.raises(RunnerDied, match="its process was ended by SIGKILL"):
                    await runner.tokenize("too late")
            assert kernel.models.loaded() == []
            async with lease(kernel) as fresh:
                assert fresh.pid != runner.pid
                assert (await outcome(fresh, SHORT["ids"])).tokens == SHORT["greedy"]
            await gone(runner.pid)
            await until(lambda: held()[:2] == before)
            assert [child.pid for child in psutil.Process().children()] == [fresh.pid]


async def test_an_idle_runner_that_died_is_noticed_before_the_next_request():
    async with kernel_of(RUNNER, num_parallel=2, context_length=256) as kernel:
        async with lease(kernel) as runner:
            pass
        os.kill(runner.pid, signal.SIGKILL)
        await until(lambda: not kernel.models.loaded())
        async with lease(kernel) as fresh:
            assert (await outcome(fresh, SHORT["ids"])).tokens == SHORT["greedy"]


@pytest.mark.parametrize("how", ["free", "held"])
async def test_a_runner_that_hangs_is_ended_with_all_its_requests_and_says_where_it_was(caplog, how):
    caplog.set_level("INFO", "puna.runner")
    async with kernel_of("tests.hanging_runner", step_timeout=1.0) as kernel:
        async with lease(kernel) as runner:
            requests = [outcome(runner, SHORT["ids"], stop=[how]) for _ in range(2)]
            for found in await asyncio.gather(*map(refusal, requests)):
                assert found[:2] == (RunnerDied, "its process got no further for 1 s and was ended")
        assert kernel.models.loaded() == []
        await gone(runner.pid)
    assert "hanging_runner.py" in caplog.text  # in the trace of a thread


async def test_a_runner_need_not_get_on_once_its_replies_are_computed_however_slowly_they_are_read(monkeypatch):
    looks = []  # whether replies were due
    monkeypatch.setattr(Pulse, "stopped", lambda pulse, stats, *, due: looks.append(due))
    runner = await LocalRunner.start(ENDLESS, load(), step_timeout_s=0.1)
    async with aclosing(endless(runner)) as talking:
        await anext(talking)
        await until(lambda: any(looks))
    async with aclosing(runner.generate(ask(SHORT["ids"]))) as reading:
        await anext(reading)
        looks.clear()
        await until(lambda: looks and not looks[-1])
        looks.clear()
        await until(lambda: len(looks) > 3)
        assert not any(looks)
        assert [event async for event in reading][-1].reason == "length"
    await runner.close()


SERVER = f"""
import asyncio, sys
from puna.core.scheduler.local import LocalRunner
from puna.core.scheduler.messages import Generate
from puna.core.scheduler.wire import Load
from tests.test_local import load

async def serve():
    runners = [await LocalRunner.start({ENDLESS!r}, load()) for _ in range(2)]
    print(*[runner.pid for runner in runners], flush=True)
    async for _ in runners[0].generate(Generate(prompt=[1, 2], num_ctx=64)):
        pass

asyncio.run(serve())
"""


async def test_no_runner_outlives_its_server():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdout=PIPE, env=environment)
    pids = list(map(int, (await server.stdout.readline()).split()))
    assert len(pids) == 2 and not any(map(is_gone, pids))
    server.kill()
    await gone(*pids)
    await server.wait()


async def test_a_runner_that_is_busy_notices_its_servers_end_without_the_help_of_the_system():
    child = await Child.start(STUCK)
    await child.channel.greet()
    await child.channel.send(load())
    await child.channel.close()  # as the server's end does, though this process goes on
    await gone(child.pid)
    assert str(await child.ended()).startswith("its process exited with status 1")


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_a_load_that_is_given_up_leaves_nothing(how):
    before = held()
    if how == "late":
        with pytest.raises(RunnerDied, match=r"loading was given up after 0\.5 s"):
            await LocalRunner.start(STUCK, load(), timeout_s=0.5)
    else:
        loading = asyncio.create_task(LocalRunner.start(STUCK, load()))
        await until(psutil.Process().children)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
    await until(lambda: held() == before)


async def test_a_module_that_is_no_runner_is_told_with_its_last_words():
    with pytest.raises(RunnerDied, match=r"exited with status 1, and said last: .*No module named tests\.nothing"):
        await LocalRunner.start("tests.nothing", load())


async def test_a_process_that_sends_nonsense_is_ended_and_called_that():
    runner = await LocalRunner.start("tests.babbling_runner", load())
    with pytest.raises(RunnerDied, match="its process sent a message that is none"):
        await outcome(runner, SHORT["ids"])
    await gone(runner.pid)
    await runner.close()


CRASHING = """
import os
from dataclasses import replace
from puna.core.plugin import hookimpl
from puna.plugins import llama

def crash(config):
    print("no such device", flush=True)
    os._exit(7)

@hookimpl
def architectures():
    return [replace(llama.architectures()[0], cache=crash)]
"""


async def test_a_model_that_crashes_again_and_again_is_left_alone_for_a_while(tmp_path, monkeypatch):
    (tmp_path / "crashing_plugin.py").write_text(CRASHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with kernel_of(RUNNER, plugins=("crashing_plugin",)) as kernel:

        async def use():
            async with lease(kernel):
                pass

        for _ in range(3):
            with pytest.raises(RunnerDied, match=r"exited with status 7, and said last: no such device"):
                await use()
        with pytest.raises(Busy, match=r"died 3 times in a row, at last because .* status 7.* again in 1 s"):
            await use()


async def test_the_settings_of_the_server_reach_the_runner():
    blocks = {}
    for where in ("local", "inline"):
        settings = {"runner": where, "precise": True, "num_batch": 16, "num_parallel": 3, "context_length": 64}
        async with kernel_of(RUNNER, **settings) as kernel, lease(kernel) as runner:
            assert (await outcome(runner, SHORT["ids"], num_ctx=64)).tokens == SHORT["greedy"]
            await until(lambda runner=runner: runner.stats.finished)
            blocks[where] = runner.stats.blocks
    assert blocks["local"] == blocks["inline"] > 0


async def test_a_draft_and_an_output_format_reach_the_runner(inline):
    files = {GGUF.name: str(GGUF)}
    runner = await LocalRunner.start(RUNNER, Load(files=files, draft=files, options=small_options()))
    assert runner.facts.weight_bytes == 2 * inline.facts.weight_bytes
    assert (await outcome(runner, SHORT["ids"])).tokens == SHORT["greedy"]
    assert (await outcome(runner, SHORT["ids"], schema='{"const": true}')).text == "true"
    found = await refusal(outcome(runner, SHORT["ids"], schema="{"))
    assert found == await refusal(outcome(inline, SHORT["ids"], schema="{")) and found[0] is BadRequest
    await runner.close()


async def test_what_a_runner_prints_is_logged_with_its_level(caplog):
    caplog.set_level("INFO", "puna.runner")
    child = await Child.start(STUCK)
    await child.channel.greet()
    await child.channel.send(load())
    await until(lambda: any("stuck" in record.message for record in caplog.records))
    child.kill()
    await child.ended()
    assert any(record.message == f"{child.pid}: stuck" for record in caplog.records)


async def test_a_line_of_log_without_an_end_is_cut(caplog):
    caplog.set_level("INFO", "puna.runner")
    child = await Child.start("tests.wordy_runner")
    assert str(await child.ended()).endswith("status 0, and said last: the end")
    lengths = [len(record.message) - len(f"{child.pid}: ") for record in caplog.records]
    assert max(lengths) == 2000


@pytest.mark.parametrize(
    ("code", "last_line", "words"),
    [
        (3, "", "its process exited with status 3"),
        (1, "MemoryError", "its process exited with status 1, and said last: MemoryError"),
        (-11, "Fatal", "its process was ended by SIGSEGV"),
        (-9, "", "its process was ended by SIGKILL, as the system does when memory runs out"),
        (-63, "", "its process was ended by signal 63"),
    ],
)
async def test_how_a_process_ended_is_said_in_words(code, last_line, words):
    assert words_of_end(code, last_line) == words
