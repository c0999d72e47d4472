"""The plugin contract: the one file of the core that the author of a model plugin must read.

A plugin is a module with `@hookimpl` functions, found through the entry-point group "puna" or named in PUNA_PLUGINS.
It hands over architectures; the core finds the one a file asks for, reads its config, loads and checks its tensors,
and calls its forward pass. What to compute with is in `puna.core.tensor`.

    from puna.core.plugin import Architecture, hookimpl

    @hookimpl
    def architectures() -> list[Architecture]:
        return [Architecture(gguf=("mine",), hf=("MineForCausalLM",), config=Config, model=Mine, cache=cache_layout)]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt
import pluggy

from .errors import BadModel, BadRequest
from .keys import Keys
from .pictures import Picture
from .tensor.ops import Array, Matrix, Seen

__all__ = [
    "Architecture", "Array", "BadModel", "BadRequest", "CacheLayer", "Causal", "Chunk", "Config", "Encoder", "Hooks",
    "Keys", "LayerCache", "Matrix", "Media", "Model", "Module", "Picture", "Prepared", "Rows", "Seen", "Step",
    "TensorField", "Window", "hookimpl", "hookspec", "layers", "tensor",
]  # fmt: skip

hookspec = pluggy.HookspecMarker("puna")
hookimpl = pluggy.HookimplMarker("puna")


class Hooks:
    """What a plugin may answer. Hooks run once, when Puna starts; the token loop calls only what they handed over."""

    @hookspec
    def architectures(self) -> list[Architecture]:  # type: ignore[empty-body]
        """Return the model architectures this plugin provides."""


# --- config ---------------------------------------------------------------------------------------------------------


class Config(Protocol):
    """The sizes of one model: a frozen struct of the plugin's own, with these two among its fields.

    Its class also has a constructor `from_gguf(keys)` if the architecture answers to GGUF files, and `from_hf(keys)` if
    it answers to checkpoints. They read every value by name through Keys, which turns missing and absurd ones into
    errors that name the key; in a GGUF file the names need no architecture prefix.

    With a method `to_gguf()` Puna can also write the architecture's models as single GGUF files: it returns the keys
    that `from_gguf` reads, in a dict, without prefix. Puna reads them back before it writes anything, and refuses a
    model whose cache would be another.
    """

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for."""

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table. Logits are as wide, or less: not all that is read need be written."""


# --- tensors --------------------------------------------------------------------------------------------------------

Size = int | str  # a number, or the name of a config attribute that holds it
Names = str | tuple[str, ...] | None  # several: the same tensor in files of different origin


@dataclass(frozen=True)
class TensorField:
    """One tensor of a module: its shape in terms of the config and its name in both kinds of file."""

    shape: tuple[Size, ...]
    gguf: Names
    hf: Names
    optional: bool
    tied: str | None  # field of the same module to use when the file has no tensor of this name
    hf_part: tuple[int, int] | None  # (i, n): checkpoints hold it as the i-th of n equal parts of a tensor's rows
    gguf_part: tuple[int, int] | None  # the same of GGUF files, where a tensor is not of the shape itself
    transposed: bool | Literal["hf"]  # whether files, or checkpoints alone, hold it as [in, out]
    paired: Size | None  # heads whose rotary pairs are neighbours in GGUF files, and half a head apart in checkpoints
    unpaired: Size | None  # heads whose rotary pairs are neighbours in this file alone; 0: none


@dataclass(frozen=True)
class LayersField:
    """A list of equal modules, one a layer."""

    module: type[Module]
    count: str  # config attribute
    gguf: str | tuple[str, ...]  # prefix, with {} for the layer's number and {place} for its place among these
    hf: str

    def numbers(self, config: Any) -> Sequence[int]:
        """Return the numbers of the layers that these are."""
        found = getattr(config, self.count)
        return range(found) if isinstance(found, int) else found

    def prefixes(self, kind: Literal["gguf", "safetensors"], config: Any) -> Iterator[list[str]]:
        """Yield for each layer what the names of its tensors may begin with in files of this kind."""
        declared = self.gguf if kind == "gguf" else self.hf
        spellings = (declared,) if isinstance(declared, str) else declared
        for place, number in enumerate(self.numbers(config)):
            yield [spelling.format(number, place=place) for spelling in spellings]


def tensor(
    *shape: Size,
    gguf: Names = None,
    hf: Names = None,
    optional: bool = False,
    tied: str | None = None,
    hf_part: tuple[int, int] | None = None,
    gguf_part: tuple[int, int] | None = None,
    transposed: bool | Literal["hf"] = False,
    paired: Size | None = None,
    unpaired: Size | None = None,
) -> Any:  # Any, so that the annotation beside it decides the type
    """Declare a tensor, slowest dimension first: `out: Matrix = tensor("hidden", "queries", gguf=..., hf=...)`.

    A size whose config attribute is None is whatever the file has.

    Annotate with Matrix what goes into `linear` and `embed` (kept in the file's own format), and with Array small
    vectors such as norms and biases (widened to float32). An optional one is None when the file has none. Without a
    name for a kind of file, such files never hold it; of several names the first whose tensor has the shape counts,
    since files of different origin may even exchange names. hf_part=(1, 3): the second third of a tensor's rows, as
    where query, key and value are one; gguf_part: the same of GGUF files, some of which may hold it by itself.
    transposed: a Matrix that files hold as [in, out], or "hf": that only checkpoints do; a part of such a tensor is one
    of its columns. With a dimension more in front, all this is true of each expert's matrix. paired: its rows are so
    many heads, and GGUF files have the two of a rotary pair side by side where checkpoints have them half a head apart.
    unpaired: as many heads, of a config read from files that have pairs side by side where those that Puna writes do
    not. They are not reordered when a model is loaded, only when Puna writes a GGUF file, under the first of several
    names.
    """
    declared = TensorField(shape, gguf, hf, optional, tied, hf_part, gguf_part, transposed, paired, unpaired)
    return dataclasses.field(metadata={"tensor": declared})


def layers(module: type[Module], *, count: str, gguf: str | tuple[str, ...] = "", hf: str = "") -> Any:
    """Declare the blocks of a model: `blocks: list[Block] = layers(Block, count="layers", gguf="blk.{}.", ...)`.

    count: the config attribute that says how many there are, or the numbers of those layers that have such a part. For
    files that number such parts from 0, and do not name them by their layers, it is {place} instead of {}. gguf may be
    several, as names of tensors may.
    """
    return dataclasses.field(metadata={"layers": LayersField(module, count, gguf, hf)})


@dataclass_transform(field_specifiers=(tensor, layers))
class Module:
    """Base of classes whose annotated attributes are the tensor table. The core fills them and sets `config`.

    What follows from the loaded tensors and the config, such as a table of frequencies, is computed once in `ready`.
    """

    config: Any  # the plugin's own Config

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(eq=False, init=False, repr=False)(cls)

    def ready(self) -> None:
        """Called once, after every tensor of this module and of the ones below it is in place.

        Raises BadModel if a file has not what the module needs, where that cannot be said of each tensor alone.

        Tensors that are not Matrix may be replaced here, by what GGUF files hold in their place: norm weights with the
        one that a checkpoint leaves out, for example. That is also how they get into a GGUF file that Puna writes.
        """


# --- the cache ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Causal:
    """Every token sees itself and all before it."""


@dataclass(frozen=True)
class Window:
    """Every token sees itself and the size - 1 tokens before it."""

    size: int


@dataclass(frozen=True)
class Chunk:
    """Positions come in chunks of this size; every token sees itself and those before it in its own chunk."""

    size: int


@dataclass(frozen=True)
class Media:
    """Every token sees rows that stand beside the text, `Rows(beside=True)`, and no tokens.

    Those of the image shown last, at its own place or before it; of several shown one directly behind the other, those
    of all up to its own place.
    """


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps for each token, or row of media: the core turns it into bytes and masks."""

    heads: int  # K
    key_size: int  # E
    value_size: int
    kind: Causal | Window | Chunk | Media


class LayerCache(Protocol):
    """One layer's cache for the sequences of one step."""

    def extend(self, k: Array, v: Array) -> Seen:
        """Store the step's keys and values, [T, K, E] each, and return all that its tokens may look at."""

    def look(self, keep: Callable[[Array], tuple[Array, Array]]) -> Seen:
        """Return all that the step's tokens may look at in a layer of the kind Media, once `step.sees` is not None.

        keep: returns the keys and values, [R, K, E] each, that the layer makes of an image's rows, [R, D]. It is called
        for images whose keys and values are not kept yet.
        """


# --- the forward pass -----------------------------------------------------------------------------------------------


class Step(Protocol):
    """What one forward pass works on: tokens of several sequences in one flat batch, T in all, no padding."""

    @property
    def positions(self) -> Array:
        """[T] int32: each token's place in its own sequence, from 0.

        For an architecture with several streams of positions [streams, T]; of text they are all equal.
        """

    @property
    def cache(self) -> Sequence[LayerCache]:
        """The cache of each layer, in the order of the architecture's layout."""

    @property
    def sees(self) -> Array | None:
        """[T, 1]: 1 for each token that sees media, 0 for one that sees none; None if that is all of them.

        What layers of the kind Media make of tokens that see none is zeros.
        """

    def deepen(self, x: Array, number: int) -> Array:
        """Return x, [T, D], with one of the deeper embeddings of its images' rows added to them: the number-th, from 0.

        x may be changed. Where no image has such an embedding it is returned as it is. Source: DeepStack,
        arXiv:2406.04334, section 3.
        """


class Model(Protocol):
    """The forward pass in three parts, so that the core can put media embeddings in and pick rows out between them."""

    def embed(self, tokens: Array) -> Array:
        """Return what enters the first block. tokens: [T] int32; result: [T, D]."""

    def forward(self, x: Array, step: Step) -> Array:
        """Return what leaves the last block. x: [T, D]; result: [T, D]."""

    def logits(self, x: Array) -> Array:
        """Return the logits of chosen rows of `forward`'s result. x: [N, D]; result: [N, V]."""


# --- images ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A place in a prompt where rows of embeddings stand instead of tokens, or beside one."""

    count: int
    atomic: bool = False  # all in one step, however long that makes it
    both_ways: bool = False  # whether they see each other (then they are atomic); else each sees what is before it
    positions: npt.NDArray[np.int32] | None = None  # [streams, count], from 0; None: one after the other
    length: int | None = None  # positions until what follows; None: as many as it has tokens
    beside: bool = False  # one token stands for all of them, and keeps its own embedding: layers of the kind Media look

    @property
    def tokens(self) -> int:
        """Tokens that stand in the prompt for them."""
        return 1 if self.beside else self.count


@dataclass(frozen=True)
class Prepared:
    """One image, or the frames of a video, ready for the encoder, and what stands for it in a prompt."""

    pixels: npt.NDArray[np.float32]  # in whatever shape the encoder wants them
    parts: tuple[str | Rows, ...]  # text, control tokens written out, and the encoder's rows in their order
    grid: tuple[int, ...] = ()  # what else the encoder has to know of it


class Encoder(Module):
    """Base of what makes rows of embeddings out of pictures: processor, encoder and projector of one architecture."""

    marker: ClassVar[str]  # what chat templates write where an image belongs
    placeholder: ClassVar[str]  # the control token whose id stands for a row; if the vocabulary lacks it, id 0 does
    together: ClassVar[int] = 1  # images that one call of `encode` may be given
    media: ClassVar[frozenset[str]] = frozenset({"image"})  # what it reads: "image", "video"

    @property
    def deeper(self) -> int:
        """Embeddings that each row has for layers of the decoder, besides the one that stands in a token's place.

        They lie behind that one, in a row of (1 + deeper) · D numbers, and the decoder's forward pass asks for them
        with `Step.deepen`.
        """
        return 0

    @property
    def most_atomic(self) -> int:
        """Rows that atomic `Rows` have at most."""
        return 0

    @property
    def most_beside(self) -> int:
        """Rows beside the text that one image has at most."""
        return 0

    def prepare(self, picture: Picture) -> Prepared:
        """Return an image as the model was trained to see it. Pure; called in threads; reads only the config.

        Raises BadRequest for an image that the model cannot read, such as one of an absurd shape.
        """
        raise NotImplementedError

    def prepare_video(self, frames: Sequence[Picture]) -> Prepared:
        """Return a video of one frame or more, two for each second.

        Raises BadRequest if there is no such thing, or for frames that do not fit together.
        """
        raise BadRequest("this model reads images, not videos")

    def encode(self, images: Sequence[Prepared]) -> Generator[None, None, Sequence[Array]]:
        """Return the rows of each image, [rows, (1 + deeper) · D].

        Yields wherever others may have their turn: every layer or two.
        """
        raise NotImplementedError


C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture: the names it answers to, and its parts."""

    # Values of `general.architecture`. Where several models share one: "name+projector", for a file that has one with
    # this `clip.projector_type` beside it; that counts for more than the name alone. "name+": beside one that has none.
    gguf: tuple[str, ...] = ()
    hf: tuple[str, ...] = ()  # entries of config.json's `architectures`
    config: type[Any]  # a Config
    model: type[Module]  # also a Model
    cache: Callable[[Any], list[CacheLayer]]  # the layout, from the config
    stop_tokens: tuple[str, ...] = ()  # control tokens that end a reply besides those the file names
    vision: type[Encoder] | None = None
    # Its constructors are those of a Config, and return None for files without images. `from_hf` finds what a
    # checkpoint says of its processor, in preprocessor_config.json or processor_config.json, as the section
    # "preprocessor".
    vision_config: type[Any] | None = None
    streams: int = 1  # of positions
    # `general.architecture` of GGUF files that Puna writes; None: the first of the names above. Where it is another
    # architecture's name, that one reads the files, and so must find in them what this one's tables and `to_gguf` say.
    written_as: str | None = None
    # How checkpoints may begin a name, and what the names in this architecture's tables begin with instead.
    prefixes: Mapping[str, str] = field(default_factory=dict)
    spare: tuple[str, ...] = ()  # how names in checkpoints begin, in these tables' words, that need not be used

    def __post_init__(self) -> None:
        if not self.gguf and not self.hf:
            raise ValueError("an architecture needs a name to answer to: gguf=(...) or hf=(...)")
        for kind, names in (("gguf", self.gguf), ("hf", self.hf)):
            if isinstance(names, str):
                raise TypeError(f"{kind}={names!r} is one text, expected a tuple of names: ({names!r},)")
            for config in (self.config, self.vision_config):
                if names and config is not None and not hasattr(config, f"from_{kind}"):
                    raise TypeError(f"{config.__name__} needs a from_{kind}: the architecture answers to {names[0]}")
        if (self.vision is None) != (self.vision_config is None):
            raise TypeError("vision and vision_config belong together")

    @property
    def name_in_gguf(self) -> str | None:
        """The name in GGUF files that Puna writes; None if there are no such files."""
        return self.written_as or next(iter(self.gguf), None)

    @property
    def name(self) -> str:
        """The name shown to people."""
        return (self.gguf or self.hf)[0]

    def answers_to(self, kind: Literal["gguf", "safetensors"], metadata: Mapping[str, Any]) -> bool:
        """Whether a file with this metadata asks for this architecture, by whatever name."""
        return any(name in self.names(kind) for name in names_asked_for(kind, metadata))

    def names(self, kind: Literal["gguf", "safetensors"]) -> tuple[str, ...]:
        """The names it answers to in files of this kind."""
        return self.gguf if kind == "gguf" else self.hf


def names_asked_for(kind: Literal["gguf", "safetensors"], metadata: Mapping[str, Any]) -> list[str]:
    """Return the names by which a file asks for its architecture, the most telling first."""
    if kind == "safetensors":
        listed = metadata.get("architectures")
        return [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        return []
    projectors = [metadata.get(key) for key in ("clip.projector_type", "clip.vision.projector_type")]
    if all(projector is None for projector in projectors) and metadata.get("clip.has_vision_encoder") is True:
        projectors = [""]  # a file older than the key
    return [*(f"{name}+{projector}" for projector in projectors if isinstance(projector, str)), name]
