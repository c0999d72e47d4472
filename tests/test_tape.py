"""Tapes: what was done is done again with other numbers, in memory that recordings share."""

import numpy as np
import pytest

from puna.core.tensor import (
    activate,
    attend_all,
    concat,
    gated_mlp,
    largest,
    layer_norm,
    linear,
    moe,
    pool_patches,
    project,
    rms_norm,
    rope,
    rope_table,
    rotations,
    sharpness,
    sigmoid,
    soft_cap,
)
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import Experts
from puna.core.tensor.recorded import Recorded
from puna.core.tensor.tape import Memory, Tape, do, recording, room

from .packed import packed, random_blocks

RNG = np.random.default_rng(5)


def numbers(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def weight(rows, columns, name="Q8_0"):
    form = by_name(name)
    return packed(form, random_blocks(RNG, form, rows, columns))


X = numbers(3, 64)
NORM, BIAS, Q, K, UP, DOWN = numbers(64), numbers(64), weight(64, 64), weight(32, 64), weight(96, 64), weight(64, 96)
HALF = weight(64, 32)
TABLE = rope_table(16, base=10000.0, pairing="split", scaling=None)
POSITIONS = np.array([0, 5, 9], np.int32)
EXPERTS = [Experts((a, b)) for a, b in ((UP, UP), (UP, UP), (DOWN, DOWN))]
CHOSEN, SHARE = np.array([[0, 1], [1, 0], [0, 1]], np.int32), numbers(3, 2)

STEPS = {
    "rms_norm": lambda x: rms_norm(x, NORM, 1e-6),
    "layer_norm": lambda x: layer_norm(x, NORM, BIAS, 1e-6),
    "linear": lambda x: linear(x, Q, BIAS),
    "project": lambda x: project(x, (Q, BIAS), (K, None))[1],
    "gated_mlp": lambda x: gated_mlp(x, UP, UP, DOWN),
    "activate": lambda x: activate(x, "gelu"),
    "soft_cap": lambda x: soft_cap(x, 0.5),
    "pool_patches": lambda x: pool_patches(x.reshape(6, 4, 8), 2),
    "moe": lambda x: moe(x, CHOSEN, SHARE, *EXPERTS),
    "moe of inputs": lambda x: moe(x, CHOSEN, SHARE, *EXPERTS, shares_of="inputs"),
    "rms_norm without a weight": lambda x: rms_norm(x, None, 1e-6),
    "sigmoid": lambda x: sigmoid(x),
    "largest": lambda x: largest(x, 3)[1],
    "routed": lambda x: moe(x, largest(linear(x, Q)[:, :2], 1)[0], largest(x, 1)[1], *EXPERTS),
    "rope": lambda x: rope(x.reshape(3, 4, 16), rotations(POSITIONS, TABLE)),
    "attend_all": lambda x: attend_all(x.reshape(3, 4, 16), x.reshape(3, 4, 16), x.reshape(3, 4, 16), scale=0.25),
    "concat": lambda x: linear(concat(x, x[1:], rms_norm(x, NORM, 1e-6)), Q),
    "sum": lambda x: x + 2.0 * x + NORM * x,
    "part": lambda x: linear(x.reshape(3, 2, 32)[:, 1], HALF),
    "chain": lambda x: x + linear(rms_norm(x + linear(x, Q), NORM, 1e-6), Q),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_was_recorded_is_played_for_other_numbers(name):
    tape, given = Tape(Memory()), numbers(3, 64)
    with recording(tape):
        out = STEPS[name](Recorded(given)).data
    np.testing.assert_array_equal(out, STEPS[name](given))
    kept = tape.memory.twin(out)
    for x in (X, numbers(3, 64)):
        given[...] = x
        tape.play()
        np.testing.assert_array_equal(kept, STEPS[name](x))


def test_a_rotation_turns_by_the_positions_of_each_time():
    tape, positions = Tape(Memory()), POSITIONS.copy()
    x = X.reshape(3, 4, 16)
    with recording(tape):
        out = rope(Recorded(x), rotations(Recorded(positions), TABLE)).data
        sharp = sharpness(Recorded(positions), scale=0.1, floor=8.0).data
    positions[:] = 7, 1, 30
    tape.play()
    np.testing.assert_array_equal(out, rope(x, rotations(positions, TABLE)))
    np.testing.assert_array_equal(sharp, sharpness(positions, scale=0.1, floor=8.0))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[np.array([1])],
        lambda x: x[x],
        lambda x: float(x[0, 0]),
        lambda x: x == x,
        lambda x: x < 1,
        lambda x: 1 if x else 0,
        np.sqrt,
        np.concatenate,
        np.asarray,
    ],
    ids=["pick", "pick by numbers", "number", "equal", "less", "condition", "function", "joined", "array"],
)
def test_what_looks_at_numbers_is_refused(look):
    with pytest.raises(TypeError), recording(Tape(Memory())):
        look(Recorded(X))


def test_numbers_are_not_seen_through_methods_either():
    with pytest.raises(AttributeError):
        Recorded(X).sum()


def test_a_call_is_noted_once_with_all_that_it_does():
    tape, out, counts = Tape(Memory()), np.zeros(1), []

    def inner(out):
        out += 1

    def outer(out):
        do(inner, out)
        counts.append(1)

    with recording(tape):
        do(outer, out)
    tape.play()
    assert out == 2
    assert len(counts) == 2


def test_memory_is_lent_again_when_no_view_is_left():
    memory = Memory()
    first = memory.take((10, 10), np.dtype(np.float32))
    place, view = first.ctypes.data, first.reshape(100)[3:50].reshape(47, 1)
    del first
    other = memory.take((10, 10), np.dtype(np.float32))
    assert other.ctypes.data != place
    del view
    assert memory.take((10, 10), np.dtype(np.float32)).ctypes.data == place
    assert place % 64 == 0


def test_the_memory_of_a_long_step_does_not_grow_with_its_length():
    def held(layers):
        tape = Tape(Memory())
        with recording(tape):
            x = Recorded(X.copy())
            for _ in range(layers):
                x = STEPS["chain"](x)
        return tape.memory.nbytes

    assert held(40) == held(4)


def test_a_twin_has_the_same_numbers_and_keeps_nothing_from_being_lent():
    memory = Memory()
    lent = memory.take((4, 6), np.dtype(np.float32))
    lent[...] = np.arange(24).reshape(4, 6)
    part = lent[1:, ::2].T
    twin, place = memory.twin(part), lent.ctypes.data
    np.testing.assert_array_equal(twin, part)
    assert (twin.strides, twin.ctypes.data) == (part.strides, part.ctypes.data)
    del lent, part
    assert memory.take((4, 6), np.dtype(np.float32)).ctypes.data == place
    foreign = np.zeros(3)[1:]
    assert memory.twin(foreign) is foreign


def test_without_a_tape_nothing_is_kept():
    first = room((3,))
    assert first.base is None
    assert first.dtype == np.float32
