"""Threads that compute together: a step is hundreds of short loops, and a thread that has to be woken comes too late.

A team's workers watch for work with their eyes open for a while, then nap between looks, and sleep only when none has
come for long: nobody can wake them from within a kernel, and one that began a round beside a sleeping team would do all
of it alone. Whoever has work puts it on the table, takes items itself until none is left, and waits for those that
others still hold: a worker that is late, or whose core the system has given away, delays nobody by more than the item
it holds.

The table is one array of integers. NEXT holds a round's number and the next item in one word, so that taking an item
proves that the round is still on.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import typeof, types
from numba.extending import intrinsic
from threadpoolctl import threadpool_limits

from .jit import kernel, specialised
from .simd import LONG, features
from .tape import do
from .threads import default_threads

# Places on the table, each in a cache line of its own.
LINE = 8
NEXT, ENTRY, DONE, TAKEN, STOPPED, WORKERS, FAILED, ASLEEP = (LINE * i for i in range(8))
ARGUMENTS, COUNT = ENTRY + 1, ENTRY + 2
CLOSED = (1 << 32) - 1  # in place of an item: the round is over

ALERT = 2_000  # looks at the table in a row, with a pause in between: a tenth of a millisecond
AWAKE = 4_000  # further looks, each offering the core to others: a few milliseconds
DROWSY = 2_000  # further looks, with a nap of NAP_US in between: a third of a second
NAP_US = 100  # a nap
LOOK_S = 0.25  # after so much sleep a worker looks whether a round began that nobody woke it for
MOST = 256  # workers

Table = npt.NDArray[np.int64]


class Team:
    """The workers of one process."""

    def __init__(self) -> None:
        self.table: Table = np.zeros(ASLEEP + MOST, np.int64)
        self._begin()
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Be without workers; a forked process has none, whatever the table says."""
        self.table[:] = 0
        self._sized = False
        self._wake: list[threading.Event] = []
        self._resizing = threading.Lock()

    def resize(self, threads: int) -> None:
        """Compute with that many threads from now on, the caller's included."""
        workers = min(threads - 1, MOST)
        with self._resizing:
            while len(self._wake) < workers:
                self._wake.append(threading.Event())
                name = f"puna-compute-{len(self._wake)}"
                threading.Thread(target=self._work, args=(len(self._wake) - 1,), name=name, daemon=True).start()
            self.table[WORKERS] = workers
            self._sized = True

    def ready(self) -> Table:
        """Return the table, with those on their way who were asleep. Call it before each round."""
        if not self._sized:
            self.resize(default_threads())
        for worker in range(self.table[WORKERS]):
            if self.table[ASLEEP + worker]:
                self._wake[worker].set()
        return self.table

    def stop(self) -> None:
        """Send everyone home."""
        self.table[STOPPED] = 1
        for wake in self._wake:
            wake.set()

    def _work(self, worker: int) -> None:
        while not self.table[STOPPED]:
            self._wake[worker].clear()
            serve(self.table, worker)
            while not self._wake[worker].wait(LOOK_S) and self.table[NEXT] & CLOSED >= self.table[COUNT]:
                pass


TEAM = Team()


def use_threads(count: int) -> None:
    """Let kernels, and the matrix library, use count threads from now on, in the whole process."""
    TEAM.resize(count)
    threadpool_limits(count)


# --- words that several threads write ---------------------------------------------------------------------------------


def _word(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])


@intrinsic
def look(typing: Any, table: Any, at: Any) -> Any:
    """Return a word, and see all that was written before it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(context, builder, signature, args), "acquire", 8)

    return types.int64(table, types.intp), emit


@intrinsic
def publish(typing: Any, table: Any, at: Any, value: Any) -> Any:
    """Write a word after all that was written before."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _word(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(table, types.intp, types.int64), emit


@intrinsic
def add(typing: Any, table: Any, at: Any, value: Any) -> Any:
    """Add to a word."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(context, builder, signature, args), args[2], "acq_rel")

    return types.int64(table, types.intp, types.int64), emit


@intrinsic
def exchange(typing: Any, table: Any, at: Any, old: Any, new: Any) -> Any:
    """Replace a word if it is `old`; return whether it was."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = builder.cmpxchg(_word(context, builder, signature, args), args[2], args[3], "acq_rel", "acquire")
        return builder.extract_value(found, 1)

    return types.boolean(table, types.intp, types.int64, types.int64), emit


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread only waits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if any(feature.startswith("sse2") for feature in features()):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(_declared(builder, "llvm.x86.sse2.pause", kind), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def offer_core(typing: Any) -> Any:
    """Let another thread have this core, if one wants it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if sys.platform != "win32":
            builder.call(_declared(builder, "sched_yield", ir.FunctionType(ir.IntType(32), [])), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def nap(typing: Any, microseconds: Any) -> Any:
    """Sleep for at least so long."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if sys.platform != "win32":
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
            short = builder.trunc(args[0], ir.IntType(32))
            builder.call(_declared(builder, "usleep", kind), [short])
        return context.get_dummy_value()

    return types.void(types.intp), emit


def _declared(builder: Any, name: str, kind: Any) -> Any:
    found = builder.module.globals.get(name)
    return ir.Function(builder.module, kind, name) if found is None else found


# --- rounds -----------------------------------------------------------------------------------------------------------


@intrinsic
def call_item(typing: Any, entry: Any, arguments: Any, item: Any) -> Any:
    """Call a round's function for one item; return 1 if it raised an error, else 0."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(LONG, [LONG, LONG])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(types.int64, types.int64, types.int64), emit


@kernel
def threads_of(table):
    """Return how many threads compute together."""
    return table[WORKERS] + 1


@kernel
def take_items(table):
    """Do items of the round that is on until none is left; return how many."""
    done = 0
    while True:
        now = look(table, NEXT)
        if now & CLOSED >= table[COUNT]:
            return done
        entry, arguments = table[ENTRY], table[ARGUMENTS]
        if exchange(table, NEXT, now, now + 1):  # so the round was still on when its function was read
            if call_item(entry, arguments, now & CLOSED) > 0:
                add(table, FAILED, 1)
            add(table, DONE, 1)
            done += 1


@kernel
def watch(table, worker, looks):
    """Look for work, and do it, until there has been none for so many looks, or too many work already.

    Return whether any was done.
    """
    idle, worked = 0, False
    while idle < looks and table[STOPPED] == 0 and worker < table[WORKERS]:
        if take_items(table) > 0:
            idle, worked = 0, True
        idle += 1
        pause()
        if idle > ALERT + AWAKE:
            nap(NAP_US)
        elif idle > ALERT:
            offer_core()
    return worked


@kernel
def serve(table, worker):
    """Work until there has been none for a while.

    A worker says that it sleeps before it looks for the last time: whoever began a round before that counts on it, and
    whoever begins one later wakes it.
    """
    worked = True
    while worked:
        publish(table, ASLEEP + worker, 0)
        watch(table, worker, ALERT + AWAKE + DROWSY)
        publish(table, ASLEEP + worker, 1)
        worked = watch(table, worker, ALERT)


@kernel
def play_round(table, entry, arguments, count):
    """Call the function at address `entry` with (arguments, item) for each item below count, by many threads.

    Return how many of the calls raised an error.
    """
    failed = 0
    if count == 1 or table[WORKERS] == 0 or not exchange(table, TAKEN, 0, 1):
        for item in range(count):
            failed += call_item(entry, arguments, item)
        return failed
    round_ = (look(table, NEXT) >> 32) + 1
    table[ENTRY], table[ARGUMENTS], table[COUNT], table[DONE], table[FAILED] = entry, arguments, count, 0, 0
    publish(table, NEXT, round_ << 32)
    take_items(table)
    looks = 0
    while look(table, DONE) < count:
        pause()
        looks += 1
        if looks > ALERT:
            offer_core()
    failed = table[FAILED]
    publish(table, NEXT, (round_ << 32) + CLOSED)
    publish(table, TAKEN, 0)
    return failed


def shared(function: Any) -> Any:
    """Return what kernels call to have function(*arguments, item) called for each item below count, by the team:

    share(table, count, arguments). arguments: a tuple. function: a kernel; nothing that it returns counts, and if it
    raises an error, for want of memory, `share` raises a MemoryError in its stead.
    """

    @intrinsic
    def prepare(typing: Any, arguments: Any) -> Any:
        """Return the address of a function (arguments, item), and where the arguments lie while the caller runs."""
        signature = typeof(function).get_call_type(typing, (*arguments.types, types.intp), {})

        def emit(context: Any, builder: Any, caller: Any, args: Any) -> Any:
            compiled = function.overloads[signature.args]
            context.add_linking_libs([compiled.library])
            place = builder.alloca(args[0].type)
            builder.store(args[0], place)
            entry = _emit_entry(context, builder, compiled.fndesc, args[0].type)
            both = [builder.ptrtoint(value, LONG) for value in (entry, place)]
            return context.make_tuple(builder, caller.return_type, both)

        return types.UniTuple(types.int64, 2)(arguments), emit

    # numba looks for a cached kernel by name, and sees only this file: the name must tell whose share it is.
    source = hashlib.sha256(function.py_func.__code__.co_code + function.__module__.encode()).hexdigest()[:8]
    share = kernel(specialised(_share, f"share_{function.__name__}_{source}", prepare=prepare))
    share.function = function
    return share


def _share(table, count, arguments):
    entry, place = prepare(arguments)  # type: ignore[name-defined]  # noqa: F821 - `specialised` gives it
    if play_round(table, entry, place, count) > 0:
        raise MemoryError("a kernel failed on one of its threads")


def spread(share: Any, count: int, each: int, *arguments: Any) -> None:
    """Share `count` things out, `each` of them an item; the function gets (*arguments, each, item).

    share: what `shared` made. A single item stays with the caller.
    """
    if count <= each:
        do(share.function, *arguments, each, 0)
    else:
        do(share, TEAM.ready(), -(-count // each), (*arguments, each))


def _emit_entry(context: Any, builder: Any, described: Any, held: Any) -> Any:
    """Add a function (address of arguments, item) to the module, which calls the one described."""
    name = f"{builder.function.name}.item{len(builder.module.functions)}"
    entry = ir.Function(builder.module, ir.FunctionType(LONG, [LONG, LONG]), name)
    entry.linkage = "internal"
    inner = ir.IRBuilder(entry.append_basic_block())
    members = inner.load(inner.inttoptr(entry.args[0], held.as_pointer()))
    given = [inner.extract_value(members, i) for i in range(len(held.elements))]
    callee = context.declare_function(builder.module, described)
    status, _ = context.call_conv.call_function(
        inner, callee, described.restype, described.argtypes, [*given, entry.args[1]]
    )
    inner.ret(inner.zext(status.is_error, LONG))
    return entry
