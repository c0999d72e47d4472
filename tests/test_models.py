"""Which models are in memory: shared loads, eviction, waiting, keep-alive, failures. Runners are hand-written fakes."""

import asyncio
import time
from collections import defaultdict
from contextlib import AsyncExitStack

import pytest

from puna.core.errors import BadModel, Busy, RunnerDied
from puna.core.scheduler.models import UNSET, ModelFiles, ModelLimits, Models

pytestmark = pytest.mark.asyncio


class FakeRunner:
    """A runner that only notes its end; a gate that is not set holds its closing up."""

    death = None

    def __init__(self, key, log, gate, failure):
        self.key, self.closed = key, asyncio.Event()
        self._log, self._gate, self._failure = log, gate, failure

    async def close(self):
        await self._gate.wait()
        if self._failure:
            raise self._failure
        self._log.append(f"closed {self.key}")
        self.closed.set()


class World:
    """Models over fake runners. `log` tells what happened in which order."""

    def __init__(self, *, loaded=2, requests=100, keep_alive=None):
        self.log = []
        self.loading = defaultdict(self._open)  # key -> whether its load may finish
        self.closing = defaultdict(self._open)  # key -> whether its runner may finish closing
        self.failures = {}  # key -> what its load raises
        self.close_failures = {}
        self.models = Models(self._load, ModelLimits(loaded, requests, keep_alive))

    @staticmethod
    def _open():
        gate = asyncio.Event()
        gate.set()
        return gate

    async def _load(self, model):
        self.log.append(f"load {model.key}")
        try:
            await self.loading[model.key].wait()
        except asyncio.CancelledError:
            self.log.append(f"stopped {model.key}")
            raise
        if model.key in self.failures:
            raise self.failures[model.key]
        self.log.append(f"loaded {model.key}")
        return FakeRunner(model.key, self.log, self.closing[model.key], self.close_failures.get(model.key))

    def lease(self, key, keep_alive=UNSET, name=""):
        return self.models.lease(ModelFiles(key, {}), name=name or key, keep_alive=keep_alive)

    async def use(self, key, keep_alive=UNSET):
        """Lease and give back; return the runner."""
        async with self.lease(key, keep_alive) as runner:
            return runner

    @property
    def keys(self):
        return [model.key for model in self.models.loaded()]


async def settle():
    """Let every task that can move do so."""
    for _ in range(20):
        await asyncio.sleep(0)


# ---- loading -------------------------------------------------------------------------------------------------------


async def test_requests_that_come_together_share_one_load():
    world = World()
    world.loading["a"].clear()
    requests = [asyncio.create_task(world.use("a")) for _ in range(3)]
    await settle()
    (listed,) = world.models.loaded()
    assert (listed.key, listed.loading) == ("a", True)
    world.loading["a"].set()
    runners = await asyncio.gather(*requests)
    assert len({id(runner) for runner in runners}) == 1
    assert world.log == ["load a", "loaded a"]


async def test_a_loaded_model_is_used_again():
    world = World()
    assert await world.use("a") is await world.use("a")
    (listed,) = world.models.loaded()
    assert listed.runner is await world.use("a")
    assert not listed.loading


async def test_two_names_of_the_same_weights_share_a_runner():
    world = World()
    async with world.lease("a", name="first") as one, world.lease("a", name="second") as two:
        assert one is two
    assert [model.name for model in world.models.loaded()] == ["first"]


async def test_a_failed_load_reaches_everyone_who_waits_and_leaves_nothing():
    world = World()
    world.loading["a"].clear()
    world.failures["a"] = BadModel("broken")
    requests = [asyncio.create_task(world.use("a")) for _ in range(3)]
    await settle()
    world.loading["a"].set()
    for outcome in await asyncio.gather(*requests, return_exceptions=True):
        assert isinstance(outcome, BadModel)
    assert world.keys == []
    del world.failures["a"]
    assert (await world.use("a")).key == "a"
    assert world.log == ["load a", "load a", "loaded a"]


async def test_a_failed_load_frees_its_place():
    world = World(loaded=1)
    world.failures["a"] = BadModel("broken")
    with pytest.raises(BadModel):
        await world.use("a")
    async with world.lease("b") as runner:
        assert runner.key == "b"


async def test_a_retry_beside_those_whom_the_failure_reaches_is_left_alone():
    world = World()
    world.failures["a"] = BadModel("broken")

    async def insist():
        try:
            return await world.use("a")
        except BadModel:
            world.failures.clear()
            return await world.use("a")

    runners = await asyncio.gather(*[insist() for _ in range(3)])
    await settle()
    assert len({id(runner) for runner in runners}) == 1
    assert (world.keys, world.log) == (["a"], ["load a", "load a", "loaded a"])


# ---- requests that go away -----------------------------------------------------------------------------------------


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_request_that_goes_away_while_loading_leaves_the_others_waiting():
    world = World()
    world.loading["a"].clear()
    leaver, stayer = (asyncio.create_task(world.use("a")) for _ in range(2))
    await settle()
    await cancelled(leaver)
    world.loading["a"].set()
    assert (await stayer).key == "a"
    assert world.log == ["load a", "loaded a"]


async def test_a_load_whose_only_request_went_away_goes_on():
    world = World()
    world.loading["a"].clear()
    leaver = asyncio.create_task(world.use("a"))
    await settle()
    await cancelled(leaver)
    world.loading["a"].set()
    assert (await world.use("a")).key == "a"
    assert world.log == ["load a", "loaded a"]


async def test_a_load_that_fails_after_its_only_request_went_away_leaves_nothing():
    world = World()
    world.loading["a"].clear()
    world.failures["a"] = BadModel("broken")
    leaver = asyncio.create_task(world.use("a"))
    await settle()
    await cancelled(leaver)
    world.loading["a"].set()
    await settle()
    assert world.keys == []
    world.failures.clear()
    assert (await world.use("a")).key == "a"


async def test_a_load_that_nobody_wants_to_keep_stops_with_its_only_request():
    world = World()
    world.loading["a"].clear()
    leaver = asyncio.create_task(world.use("a", keep_alive=0))
    await settle()
    await cancelled(leaver)
    await settle()
    assert (world.keys, world.log) == ([], ["load a", "stopped a"])


async def test_a_failure_while_a_model_is_held_gives_it_back():
    world = World(loaded=1)
    with pytest.raises(ZeroDivisionError):
        async with world.lease("a"):
            1 / 0  # noqa: B018
    assert (await world.use("b")).key == "b"


# ---- room for others -----------------------------------------------------------------------------------------------


async def test_the_model_that_was_used_longest_ago_makes_room():
    world = World(loaded=2)
    for key in ("a", "b", "a", "c"):
        await world.use(key)
    assert world.keys == ["a", "c"]
    assert world.log == ["load a", "loaded a", "load b", "loaded b", "closed b", "load c", "loaded c"]


async def test_a_model_in_use_is_never_evicted():
    world = World(loaded=2)
    async with world.lease("a"):
        await world.use("b")
        await world.use("c")
        assert world.keys == ["a", "c"]


async def test_an_evicted_model_gives_its_memory_back_before_the_next_one_loads():
    world = World(loaded=1)
    await world.use("a")
    world.closing["a"].clear()
    request = asyncio.create_task(world.use("b"))
    await settle()
    assert world.log == ["load a", "loaded a"]
    world.closing["a"].set()
    await request
    assert world.log == ["load a", "loaded a", "closed a", "load b", "loaded b"]


async def test_a_model_that_is_wanted_again_while_it_closes_is_loaded_after_that():
    world = World()
    await world.use("a")
    world.closing["a"].clear()
    unloading = asyncio.create_task(world.models.unload("a"))
    request = asyncio.create_task(world.use("a"))
    await settle()
    assert world.log == ["load a", "loaded a"]
    world.closing["a"].set()
    await asyncio.gather(unloading, request)
    assert world.log == ["load a", "loaded a", "closed a", "load a", "loaded a"]
    assert world.keys == ["a"]


async def test_with_every_model_in_use_the_next_waits_for_the_first_that_is_idle():
    world = World(loaded=2)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.lease("a"))
        async with world.lease("b"):
            request = asyncio.create_task(world.use("c"))
            await settle()
            assert not request.done()
        assert (await request).key == "c"
        assert world.keys == ["a", "c"]


async def test_requests_wait_for_a_place_in_the_order_in_which_they_came():
    world = World(loaded=1)
    async with world.lease("a"):
        requests = [asyncio.create_task(world.use(key)) for key in ("b", "c", "d")]
        await settle()
    await asyncio.gather(*requests)
    assert [line for line in world.log if line.startswith("loaded")] == ["loaded a", "loaded b", "loaded c", "loaded d"]


async def test_a_request_for_a_loaded_model_does_not_wait_behind_those_for_a_place():
    world = World(loaded=1)
    async with world.lease("a"):
        waiting = asyncio.create_task(world.use("b"))
        await settle()
        assert (await world.use("a")).key == "a"
    await waiting


async def test_a_request_that_stops_waiting_for_a_place_leaves_it_to_the_next():
    world = World(loaded=1)
    async with world.lease("a"):
        leaver, stayer = (asyncio.create_task(world.use(key)) for key in ("b", "c"))
        await settle()
        await cancelled(leaver)
    assert (await stayer).key == "c"
    assert world.keys == ["c"]


async def test_a_load_that_stops_lets_the_eviction_before_it_finish():
    world = World(loaded=1)
    runner = await world.use("a")
    world.closing["a"].clear()
    leaver = asyncio.create_task(world.use("b", keep_alive=0))
    await settle()
    await cancelled(leaver)
    world.closing["a"].set()
    await settle()
    assert runner.closed.is_set()
    assert world.log == ["load a", "loaded a", "closed a"]


async def test_a_model_that_does_not_close_as_it_should_is_logged_and_hinders_nobody(caplog):
    world = World(loaded=1)
    world.close_failures["a"] = RuntimeError("stuck")
    await world.use("a")
    assert (await world.use("b")).key == "b"
    assert "a was not unloaded as it should" in caplog.text
    assert "RuntimeError: stuck" in caplog.text


# ---- keep-alive ----------------------------------------------------------------------------------------------------


async def test_a_model_to_be_kept_for_ever_has_no_end():
    world = World(keep_alive=0)
    await world.use("a", keep_alive=None)
    (listed,) = world.models.loaded()
    assert listed.expires_at is None


async def test_a_model_not_to_be_kept_goes_with_its_last_request():
    world = World()
    async with world.lease("a", keep_alive=0) as runner:
        async with world.lease("a"):
            pass
        assert world.keys == ["a"]
    assert world.keys == []
    await asyncio.wait_for(runner.closed.wait(), 1)


async def test_without_a_word_the_operators_setting_holds():
    world = World(keep_alive=0)
    await world.use("a")
    assert world.keys == []
    world = World(keep_alive=600.0)
    before = time.time()
    await world.use("a")
    (listed,) = world.models.loaded()
    assert before + 600 <= listed.expires_at <= time.time() + 600
    await world.models.close()


async def test_a_wish_holds_until_another_request_brings_its_own():
    world = World(keep_alive=0)
    await world.use("a", keep_alive=600.0)
    await world.use("a")
    assert world.keys == ["a"]
    await world.use("a", keep_alive=None)
    assert [model.expires_at for model in world.models.loaded()] == [None]
    await world.use("a", keep_alive=0)
    assert world.keys == []


async def test_an_idle_model_goes_when_its_time_is_up():
    world = World(keep_alive=0.001)
    runner = await world.use("a")
    assert world.keys == ["a"]
    await asyncio.wait_for(runner.closed.wait(), 1)
    assert world.keys == []


async def test_the_time_of_a_model_in_use_does_not_run():
    world = World(keep_alive=0.001)
    async with world.lease("a") as runner:
        async with world.lease("a"):
            pass
        await asyncio.sleep(0.004)
        assert world.keys == ["a"]
        assert not runner.closed.is_set()
    await asyncio.wait_for(runner.closed.wait(), 1)


async def test_a_place_that_comes_free_by_time_goes_to_who_waits():
    world = World(loaded=1, keep_alive=0.001)
    await world.use("a")
    world.loading["b"].clear()
    leaver = asyncio.create_task(world.use("b"))
    await settle()
    waiting = asyncio.create_task(world.use("c"))
    await settle()
    assert not waiting.done()
    await cancelled(leaver)
    assert (await asyncio.wait_for(waiting, 1)).key == "c"


# ---- runners that die ----------------------------------------------------------------------------------------------


def kill(runner):
    runner.death = RunnerDied("it was killed")


async def test_a_dead_runner_is_listed_no_longer_and_the_next_request_starts_another():
    world = World()
    runner = await world.use("a")
    kill(runner)
    assert world.keys == []
    await asyncio.wait_for(runner.closed.wait(), 1)
    assert await world.use("a") is not runner


async def test_those_who_hold_a_dead_runner_leave_its_successor_alone():
    world = World(keep_alive=0)
    with pytest.raises(RunnerDied):
        async with world.lease("a") as runner:
            kill(runner)
            async with world.lease("a") as fresh:
                assert fresh is not runner
                raise runner.death
    await asyncio.wait_for(fresh.closed.wait(), 1)


async def test_the_place_of_a_dead_runner_goes_to_who_waits():
    world = World(loaded=1)
    async with world.lease("a") as runner:
        waiting = asyncio.create_task(world.use("b"))
        await settle()
        assert not waiting.done()
        kill(runner)
    assert (await asyncio.wait_for(waiting, 1)).key == "b"


async def die_at_once(world, key="a"):
    with pytest.raises(RunnerDied):
        async with world.lease(key) as runner:
            kill(runner)
            raise runner.death


async def test_a_model_whose_runners_die_in_a_row_may_not_be_started_for_a_while():
    world = World()
    for _ in range(3):
        await die_at_once(world)
    with pytest.raises(Busy, match=r"died 3 times in a row, at last because it was killed; .* again in 1 s"):
        await world.use("a")
    assert world.keys == []
    assert (await world.use("b")).key == "b"


async def test_runners_that_die_while_they_load_count_too():
    world = World()
    world.failures["a"] = RunnerDied("no memory")
    for _ in range(3):
        with pytest.raises(RunnerDied):
            await world.use("a")
    with pytest.raises(Busy, match="died 3 times in a row, at last because no memory"):
        await world.use("a")


async def test_models_that_cannot_be_loaded_may_be_tried_as_often_as_one_likes():
    world = World()
    world.failures["a"] = BadModel("broken")
    for _ in range(5):
        with pytest.raises(BadModel):
            await world.use("a")


async def test_a_runner_that_answered_somebody_begins_no_row():
    world = World()
    for _ in range(5):
        await world.use("a")
        await die_at_once(world)


async def test_a_runner_that_answered_somebody_ends_the_row_even_if_it_is_unloaded_before_it_dies():
    world = World()
    for _ in range(2):
        await die_at_once(world)
    await world.use("a")
    await world.models.unload("a")
    await die_at_once(world)
    assert (await world.use("a")).key == "a"


async def test_a_runner_that_lived_long_begins_no_row(monkeypatch):
    monkeypatch.setattr("puna.core.scheduler.models.STEADY_S", -1.0)
    world = World()
    for _ in range(5):
        await die_at_once(world)


# ---- unloading -----------------------------------------------------------------------------------------------------


async def test_an_idle_model_is_gone_when_unloading_returns():
    world = World()
    runner = await world.use("a")
    assert await world.models.unload("a")
    assert runner.closed.is_set()
    assert world.keys == []


async def test_a_model_that_is_not_loaded_cannot_be_unloaded():
    assert not await World().models.unload("a")


async def test_a_model_in_use_is_unloaded_when_its_last_request_ends():
    world = World()
    async with world.lease("a") as runner:
        assert await world.models.unload("a")
        await settle()
        assert not runner.closed.is_set()
    await asyncio.wait_for(runner.closed.wait(), 1)
    assert world.keys == []


async def test_a_load_that_nobody_waits_for_can_be_unloaded():
    world = World()
    world.loading["a"].clear()
    leaver = asyncio.create_task(world.use("a"))
    await settle()
    await cancelled(leaver)
    assert await world.models.unload("a")
    assert (world.keys, world.log) == ([], ["load a", "stopped a"])


async def test_unloading_goes_on_though_the_request_for_it_goes_away():
    world = World()
    runner = await world.use("a")
    world.closing["a"].clear()
    leaver = asyncio.create_task(world.models.unload("a"))
    await settle()
    await cancelled(leaver)
    world.closing["a"].set()
    await asyncio.wait_for(runner.closed.wait(), 1)


# ---- limits and the end --------------------------------------------------------------------------------------------


async def test_requests_beyond_the_limit_are_turned_away_until_one_ends():
    world = World(loaded=1, requests=2)
    async with world.lease("a"):
        waiting = asyncio.create_task(world.use("b"))
        await settle()
        with pytest.raises(Busy, match="maximum pending requests exceeded"):
            await world.use("a")
    await waiting
    assert (await world.use("a")).key == "a"


async def test_a_request_that_failed_or_went_away_counts_no_longer():
    world = World(requests=1)
    world.failures["a"] = BadModel("broken")
    world.loading["b"].clear()
    with pytest.raises(BadModel):
        await world.use("a")
    leaver = asyncio.create_task(world.use("b"))
    await settle()
    await cancelled(leaver)
    assert (await world.use("c")).key == "c"


async def test_closing_unloads_what_is_idle_in_use_or_loading():
    world = World(loaded=3)
    idle = await world.use("a")
    world.loading["c"].clear()
    async with world.lease("b") as used:
        loading = asyncio.create_task(world.use("c"))
        await settle()
        await world.models.close()
        assert (idle.closed.is_set(), used.closed.is_set(), world.keys) == (True, True, [])
    with pytest.raises(Busy, match="shutting down"):
        await loading
    assert world.log.count("closed b") == 1
    assert world.log[-1] != "loaded c"


async def test_nothing_is_loaded_once_closing_has_begun():
    world = World(loaded=1)
    async with world.lease("a"):
        waiting = asyncio.create_task(world.use("b"))
        await settle()
        await world.models.close()
    for request in (waiting, world.use("a")):
        with pytest.raises(Busy, match="shutting down"):
            await request
    assert world.log == ["load a", "loaded a", "closed a"]
