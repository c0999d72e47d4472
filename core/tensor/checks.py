"""What operations ask of what plugins hand them: kernels trust dtypes and shapes, and would read what is not there.

A check takes some hundred nanoseconds, which every operation of a step can afford.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BadModel

FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)


class AnySize:
    """Equals every size, so that one comparison of tuples tells whether an array has the shape that is expected."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "any"


ANY = AnySize()
Shape = tuple[int | AnySize, ...]


def expect(what: str, array: object, shape: Shape | None = None, dtype: np.dtype[Any] = FLOAT32) -> None:
    """Raise BadModel unless this is an array of that dtype and shape, or of any shape if there is none.

    what: names the operation and its argument.
    """
    if isinstance(array, np.ndarray) and array.dtype == dtype and (shape is None or array.shape == shape):
        return
    found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
    raise BadModel(f"{what} is {found}, expected {dtype}{'' if shape is None else f' {list(shape)}'}")


def expect_kinds(name: str, kinds: tuple[type, ...], *weights: object) -> None:
    """Raise BadModel unless the weights are of these kinds: a plugin may have declared a matrix as an array, say."""
    for weight in weights:
        if not isinstance(weight, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise BadModel(f"{name}: a weight is {type(weight).__name__}, expected {expected}")


def expect_mlp(name: str, kinds: tuple[type, ...], gate: Any, up: Any, down: Any) -> None:
    """Raise BadModel unless the weights are of these kinds and fit each other.

    Their shapes: [inner, D], [inner, D] and [D, inner], or all with a dimension more, of experts.
    """
    expect_kinds(name, kinds, gate, up, down)
    g, u, d = gate.shape, up.shape, down.shape
    if g != u or d[:-2] + d[-1:] != g[:-1]:
        raise BadModel(f"{name}: gate {list(g)}, up {list(u)} and down {list(d)} do not fit each other")
