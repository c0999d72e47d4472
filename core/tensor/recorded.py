"""Arrays of a step that is being recorded: operations on them are done, and noted on the tape that runs.

They offer what the contract says arrays can do, and no look at their numbers: a step that goes another way for other
numbers cannot be recorded, and says so with a TypeError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import numpy as np

from . import cpu, ops  # noqa: F401 - the implementations are there
from .tape import Anything, contiguous, do, recording, room

BY_CALLS: tuple[ops.Operation[..., Any], ...] = (
    ops.embed, ops.linear, ops.project, ops.rms_norm, ops.layer_norm, ops.gated_mlp, ops.rotations, ops.rope,
    ops.attend, ops.soft_cap, ops.sharpness, ops.sigmoid, ops.largest, ops.moe,
)  # fmt: skip
AS_A_WHOLE: tuple[ops.Operation[..., Any], ...] = (
    ops.activate, ops.mlp, ops.conv_patches, ops.attend_all, ops.concat, ops.interpolate, ops.pool_patches,
)  # fmt: skip


class Recorded:
    """An array whose numbers will be others each time the tape is played."""

    __slots__ = ("data",)
    __array_ufunc__ = None  # so that numpy leaves array * recorded to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: Anything) -> None:
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, slowest dimension first."""
        return self.data.shape

    def reshape(self, *shape: Any) -> Recorded:
        """Return the same numbers in another shape."""
        return Recorded(contiguous(self.data).reshape(*shape))

    def __add__(self, other: Any) -> Recorded:
        return _combined(np.add, self.data, plain(other))

    def __mul__(self, other: Any) -> Recorded:
        return _combined(np.multiply, self.data, plain(other))

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, index: Any) -> Recorded:
        part = self.data[index] if not isinstance(index, Recorded) else self._refuse()
        if not isinstance(part, np.ndarray) or not np.may_share_memory(part, self.data):
            self._refuse()
        return Recorded(part)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a step that looks at its numbers, or picks some of them, cannot be recorded")

    __array__ = __bool__ = __float__ = __int__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse


def plain(value: Any) -> Any:
    """Return the array of what is recorded, also within tuples and lists, and anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value.data if isinstance(value, Recorded) else value


def _plain_ones(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in kwargs.items()}


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return Recorded(value)
    return tuple(_wrapped(item) for item in value) if isinstance(value, tuple) else value


def _combined(function: np.ufunc, left: Anything, right: Any) -> Recorded:
    shape, dtype = np.broadcast_shapes(left.shape, np.shape(right)), np.result_type(left, right)
    out = room(shape, dtype)
    do(function, left, right, out)
    return Recorded(out)


def _by_calls(operation: ops.Operation[Any, Any]) -> Callable[..., Any]:
    """Return the implementation for numpy arrays, which lets `do` make its calls."""
    implementation = operation.implementation(np.ndarray)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        return _wrapped(implementation(*map(plain, args), **_plain_ones(kwargs)))

    return recorded


def _as_a_whole(operation: ops.Operation[Any, Any]) -> Callable[..., Any]:
    """Return the implementation for numpy arrays as one call, which is free to look at numbers."""
    implementation = operation.implementation(np.ndarray)

    def recorded(*args: Any, **kwargs: Any) -> Recorded:
        arrays, kwargs = [plain(arg) for arg in args], _plain_ones(kwargs)
        with recording(None):
            found = implementation(*arrays, **kwargs)
        out = room(found.shape, found.dtype)
        do(_run_into, out, partial(implementation, **kwargs), *arrays)
        return Recorded(out)

    return recorded


def _run_into(out: Anything, function: Callable[..., Anything], *args: Any) -> None:
    out[...] = function(*args)


for _operation in BY_CALLS:
    _operation.register(Recorded)(_by_calls(_operation))
for _operation in AS_A_WHOLE:
    _operation.register(Recorded)(_as_a_whole(_operation))
