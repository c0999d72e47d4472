"""The operations a plugin computes with. Each dispatches on the type of its first argument.

numpy arrays go to the CPU kernels; another kind of array (a device's, or one without data that only records shapes)
brings implementations of its own through `Operation.register`. A plugin therefore never names a device.

Shapes use one alphabet: T tokens, D hidden, H query heads, K key/value heads, E head size, V vocabulary. Activations
are float32. On numpy arrays, what is of another dtype or of shapes that do not fit raises BadModel.
"""

# mypy: disable-error-code="empty-body"
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar

from .rope import RopeTable

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_quick"]  # gelu: with erf; gelu_quick: x · sigmoid(1.702 x)


class Array(Protocol):
    """What every backend's arrays can do besides being passed to operations."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, slowest dimension first."""

    @property
    def reshape(self) -> Callable[..., Any]:
        """reshape(*shape): the same values in another shape; one size may be -1."""

    def __add__(self, other: Any, /) -> Array: ...
    def __mul__(self, other: Any, /) -> Array: ...
    def __getitem__(self, index: Any, /) -> Array: ...


class Matrix(Protocol):
    """A weight in the layout its backend multiplies with; it may be quantised: [out, in], or [experts, out, in]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, slowest dimension first."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""


class Rotation(Protocol):
    """Cosines and sines of one step's positions, made by `rotations`."""


class Seen(Protocol):
    """What one layer of a step may look at: each sequence's keys and values, and who sees which."""


class Operation(Generic[P, R]):
    """A function with one implementation for each kind of array."""

    def __init__(self, declaration: Callable[P, R]) -> None:
        self.__doc__, self.__name__ = declaration.__doc__, declaration.__name__
        self.__wrapped__ = declaration
        self._kinds: dict[type, Callable[..., Any]] = {}

    def register(self, kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that makes its function the implementation for arrays of exactly this type."""

        def add(implementation: Callable[..., Any]) -> Callable[..., Any]:
            self._kinds[kind] = implementation
            return implementation

        return add

    def implementation(self, kind: type) -> Callable[P, R]:
        """Return the implementation for arrays of exactly this type. Raises TypeError if there is none."""
        try:
            return self._kinds[kind]
        except KeyError:
            raise TypeError(f"{self.__name__} has no implementation for {kind.__name__}") from None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the implementation for the first argument's type. Raises TypeError if there is none."""
        return self.implementation(type(args[0]))(*args, **kwargs)


@Operation
def embed(tokens: Array, table: Matrix) -> Array:
    """Return the rows of table at tokens. tokens: [T] int32; table: [V, D]; result: [T, D]."""


@Operation
def insert(x: Array, rows: Array, at: int) -> Array:
    """Return x with rows in the place of its own from `at` on. x: [T, D], which may be changed; rows: [n, D]."""


@Operation
def add_rows(x: Array, rows: Array, at: int) -> Array:
    """Return x with rows added to its own from `at` on. x: [T, D], which may be changed; rows: [n, D]."""


@Operation
def linear(x: Array, weight: Matrix, bias: Array | None = None) -> Array:
    """Return x · weightᵀ + bias. x: [T, in]; weight: [out, in]; bias: [out]; result: [T, out]."""


@Operation
def project(x: Array, *parts: tuple[Matrix, Array | None]) -> tuple[Array, ...]:
    """Return `linear` of one input for several (weight, bias), as one product where the backend can: q, k and v."""


@Operation
def rms_norm(x: Array, weight: Array | None, eps: float) -> Array:
    """Return weight · x / sqrt(mean(x²) + eps) over the last dimension. Source: arXiv:1910.07467, section 4."""


@Operation
def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Return weight · (x - mean(x)) / sqrt(variance(x) + eps) + bias over the last dimension.

    Source: Layer Normalization, arXiv:1607.06450, section 3; the variance is that of all D numbers, not of D - 1.
    """


@Operation
def activate(x: Array, activation: Activation) -> Array:
    """Return the activation of each number of x. Source: Gaussian Error Linear Units, arXiv:1606.08415, section 2."""


@Operation
def soft_cap(x: Array, cap: float) -> Array:
    """Return cap · tanh(x / cap), which no number leaves the range of. Source: Gemma 2, arXiv:2408.00118, section 2."""


@Operation
def mlp(
    x: Array,
    up: Matrix,
    down: Matrix,
    *,
    activation: Activation,
    biases: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """Return down(activation(up(x))). x: [T, D]; biases: of up and of down."""


@Operation
def gated_mlp(
    x: Array,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    *,
    activation: Activation = "silu",
    biases: tuple[Array | None, Array | None, Array | None] = (None, None, None),
) -> Array:
    """Return down(activation(gate(x)) · up(x)). x: [T, D]; biases: of gate, up and down.

    Source: GLU Variants Improve Transformer, arXiv:2002.05202.
    """


@Operation
def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) of each number of x."""


@Operation
def largest(x: Array, count: int) -> tuple[Array, Array]:
    """Return where the `count` largest numbers of each row are, [T, count] int32, and they themselves, [T, count].

    x: [T, N]. The largest comes first; of equal ones, the first.
    """


@Operation
def moe(
    x: Array,
    chosen: Array,
    share: Array,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    *,
    activation: Activation = "silu",
    shares_of: Literal["answers", "inputs"] = "answers",
) -> Array:
    """Return Σ_j share[t, j] · gated_mlp of expert chosen[t, j] for each token: a mixture of experts.

    x: [T, D]; chosen: [T, k] int32, different experts for one token; share: [T, k]; gate, up: [experts, inner, D];
    down: [experts, D, inner]. Only weights of chosen experts are read. shares_of="inputs": it is x that is multiplied
    with the share, before the expert gets it, and not what the expert answers. Source: Mixtral of Experts,
    arXiv:2401.04088, section 2.1; what `chosen` and `share` are is the model's.
    """


@Operation
def conv_patches(pixels: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return a convolution whose stride is the size of its kernel: one row of D numbers for each patch of an image.

    pixels: [N, C, height, width]; weight: [D, C, patch height, patch width]; bias: [D]; result: [N, P, D], patches row
    by row. With frames before the height in both shapes, a patch spans several frames too. Raises BadModel if patches
    do not fill the image.
    """


@Operation
def pool_patches(x: Array, size: int) -> Array:
    """Return the average of each square of size x size patches. x: [rows, columns, D]; result: [rows', columns', D].

    Raises BadModel if squares do not fill the image.
    """


@Operation
def interpolate(table: Array, places: Array) -> Array:
    """Return what lies between the rows of a table laid out in a grid: the weighted mean of the four nearest.

    table: [R, C, D]; places: [2, P] float32, row and column of each point, up to R - 1 and C - 1; result: [P, D].
    """


@Operation
def rotations(positions: Array, table: RopeTable) -> Rotation:
    """Return the cosines and sines of positions, [T] int32, counted from the start of each sequence.

    For a table with sections: [streams, T].
    """


@Operation
def rope(x: Array, rotation: Rotation) -> Array:
    """Return x with each head's pairs turned by its token's position. x: [T, heads, E].

    Dimensions beyond the table's size pass through. Source: RoFormer, arXiv:2104.09864, section 3.4.2.
    """


@Operation
def sharpness(positions: Array, *, scale: float, floor: float) -> Array:
    """Return 1 + scale · ln(1 + ⌊(position + 1) / floor⌋), [T, 1, 1]: what queries are multiplied with.

    Softmax over ever more keys gets flatter; this keeps it as sharp as it was trained. positions: [T] int32.
    Source: Scalable-Softmax Is Superior for Attention, arXiv:2501.19399; with steps, as published with Llama 4.
    """


@Operation
def attend(q: Array, seen: Seen, *, scale: float, soft_cap: float | None = None) -> Array:
    """Return softmax(scores + mask) · v for each head, over what `LayerCache.extend` returned.

    scores = scale · q·kᵀ, or soft_cap · tanh(that / soft_cap): Gemma 2, arXiv:2408.00118, section 2. q: [T, H, E];
    query head h reads key/value head h // (H / K); result: [T, H · value size]. Softmax in float32.
    """


@Operation
def attend_all(q: Array, k: Array, v: Array, *, scale: float, lengths: Sequence[int] | None = None) -> Array:
    """Return softmax(scale · q·kᵀ) · v for each head, where every row sees all others: what encoders of images do.

    With lengths, which add up to P, the rows are stretches of so many that see only themselves. q, k: [P, H, E];
    v: [P, H, F]; result: [P, H · F]. Without lengths q may be some of the rows: a large image is attended to in parts.
    """


@Operation
def concat(*parts: Array, columns: bool = False) -> Array:
    """Return the rows of all parts, one below the other, in memory of their own. parts: [rows, ...], one or more.

    columns: side by side instead; parts: [rows, columns].
    """
