"""Opens a weight source with the architecture that answers to it: config, tensors, forward pass, cache layout."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

from .errors import BadModel
from .keys import Keys
from .plugin import (
    Architecture,
    Array,
    CacheLayer,
    Config,
    Encoder,
    LayersField,
    Matrix,
    Model,
    Module,
    Size,
    TensorField,
    names_asked_for,
)
from .tensor.checks import ANY, AnySize
from .tensor.source import PartOfTensor, TensorInfo, WeightSource

log = logging.getLogger(__name__)

MANY = 64  # complaints after which a file is beyond saving


class Loader(Protocol):
    """Puts tensors where a backend can compute with them."""

    def matrix(self, source: WeightSource, info: TensorInfo, *, transposed: bool = False) -> Matrix:
        """Return a weight, [out, in] or of experts, in the backend's layout. transposed: the file holds [in, out]."""

    def array(self, source: WeightSource, info: TensorInfo) -> Array:
        """Return a small tensor as float32."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to compute."""

    architecture: Architecture
    config: Config
    model: Model
    cache: list[CacheLayer]
    weight_bytes: int
    vision: Encoder | None = None


def find_architecture(architectures: Sequence[Architecture], source: WeightSource) -> Architecture:
    """Return the architecture that answers to source, by the most telling name. Raises BadModel naming it."""
    for name in names_asked_for(source.kind, source.metadata):
        for architecture in architectures:
            if name in architecture.names(source.kind):
                return architecture
    key = "general.architecture" if source.kind == "gguf" else "architectures"
    known = ", ".join(sorted({name for a in architectures for name in a.names(source.kind)}))
    raise BadModel(f"no plugin provides {key} = {source.metadata.get(key)!r}; installed: {known or 'none'}")


def load_model(architecture: Architecture, source: WeightSource, loader: Loader) -> LoadedModel:
    """Return the model in source. Raises BadModel naming each missing or misshapen tensor."""
    config = read_config(architecture.config, source)
    eye = None if architecture.vision_config is None else read_vision_config(architecture.vision_config, source)
    binder = _Binder(source, loader, architecture)
    model: Any = binder.module(architecture.model, config)
    vision: Any = None if eye is None or architecture.vision is None else binder.module(architecture.vision, eye)
    binder.finish()
    return LoadedModel(architecture, config, model, architecture.cache(config), binder.nbytes, vision)


def read_config(kind: type[Any], source: WeightSource) -> Any:
    """Return the sizes that source gives, as a config of that kind."""
    if source.kind == "gguf":
        prefix = f"{source.metadata['general.architecture']}."
        return kind.from_gguf(Keys(source.metadata, prefix=prefix, origin="GGUF metadata"))
    return kind.from_hf(Keys(source.metadata, origin="config.json"))


def read_vision_config(kind: type[Any], source: WeightSource) -> Any:
    """Return what source says of its encoder of images, as a config of that kind; None if it has none.

    What checkpoints say of their processor lies in a file of its own: `from_hf` finds it as the section "preprocessor".
    """
    if source.kind == "gguf":
        return read_config(kind, source)
    return kind.from_hf(Keys({**source.metadata, "preprocessor": _preprocessor(source)}, origin="config.json"))


def _preprocessor(source: WeightSource) -> Any:
    """Return what a checkpoint says of how images are prepared; None if it says nothing. Newer ones nest it."""
    alone = _side_object(source, "preprocessor_config.json")
    return alone if alone is not None else (_side_object(source, "processor_config.json") or {}).get("image_processor")


def _side_object(source: WeightSource, name: str) -> dict[str, Any] | None:
    """Return the object in a JSON file that lies beside the weights; None if there is no such file."""
    data = source.side_file(name)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadModel(f"{name} holds a {type(found).__name__}; expected an object")
    return found


class _Binder:
    """Walks the tensor table of a module class and fills an instance, collecting every complaint before it speaks."""

    def __init__(self, source: WeightSource, loader: Loader, architecture: Architecture) -> None:
        self._source, self._loader, self._architecture = source, loader, architecture
        # From the names in tables to those in the file; the longest prefix counts, as one may begin another.
        self._names = {_renamed(name, architecture.prefixes): name for name in source.tensors}
        self._used: set[str] = set()
        self._problems: list[str] = []
        self.nbytes = 0

    def module(self, kind: type[Module], config: Any, prefixes: Sequence[str] = ("",)) -> Module:
        """Return a filled instance. prefixes: what may stand in front of its tensors' names."""
        made = kind()
        made.config = config
        for field, declared, wanted in table(kind):
            if isinstance(declared, LayersField):
                setattr(made, field, list(self._layers(declared, config, prefixes)))
            else:
                setattr(made, field, self._tensor(made, declared, wanted, prefixes))
        if not self._problems:
            made.ready()
        return made

    def finish(self) -> None:
        """Raise what was found wrong, and warn of tensors that nothing asked for."""
        if self._problems:
            shown = "; ".join(self._problems[:8])
            more = f"; and {len(self._problems) - 8} more" if len(self._problems) > 8 else ""
            raise BadModel(f"the model's tensors do not fit its architecture: {shown}{more}")
        prefixes, spare = self._architecture.prefixes, self._architecture.spare
        left = (name for name in self._source.tensors if name not in self._used)
        unused = [name for name in left if not _renamed(name, prefixes).startswith(spare)]
        if unused:
            log.warning("%d tensors are not used by this architecture: %s", len(unused), ", ".join(unused[:8]))

    def _layers(self, declared: LayersField, config: Any, prefixes: Sequence[str]) -> Iterator[Module]:
        for own in declared.prefixes(self._source.kind, config):
            if len(self._problems) > MANY:
                return  # a count from a hostile file must not keep us busy
            yield self.module(declared.module, config, [above + prefix for above in prefixes for prefix in own])

    def _tensor(self, made: Module, declared: TensorField, wanted: type, prefixes: Sequence[str]) -> Any:
        names = self._spellings(declared, prefixes)
        shape = tuple(size_of(size, made.config) for size in declared.shape)
        turned = declared.transposed is True or (declared.transposed == "hf" and self._source.kind == "safetensors")
        expected = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
        found = self._found(names, expected)
        if found is None:
            if declared.tied is not None:
                return getattr(made, declared.tied)
            if not declared.optional and names:
                self._problems.append(f"{' or '.join(names)} is missing (expected {list(shape)})")
            return None
        self._used.add(found)
        info, source = self._source.tensors[found], self._source
        part = declared.hf_part if source.kind == "safetensors" else declared.gguf_part
        if part is not None and (source.kind == "safetensors" or info.shape != expected):
            source = PartOfTensor(source, found, *part, columns=turned)
            info = source.tensors[found]
        if info.shape != expected:
            self._problems.append(f"{info.name} is {list(info.shape)}, expected {list(expected)}")
            return None
        if self._problems:
            return None  # nothing will run: only look for more to report
        if wanted is Matrix:
            loaded: Any = self._loader.matrix(source, info, transposed=turned)
        else:
            loaded = self._loader.array(source, info)
        self.nbytes += getattr(loaded, "nbytes", 0)
        return loaded

    def _found(self, names: Sequence[str], shape: tuple[int | AnySize, ...]) -> str | None:
        """Return the file's tensor of one of these names: the first that has this shape, or else the first."""
        present = [self._names[name] for name in names if name in self._names]
        fitting = [name for name in present if self._source.tensors[name].shape == shape]
        return next(iter(fitting + present), None)

    def _spellings(self, declared: TensorField, prefixes: Sequence[str]) -> list[str]:
        names = declared.gguf if self._source.kind == "gguf" else declared.hf
        return [prefix + name for name in ((names,) if isinstance(names, str) else names or ()) for prefix in prefixes]


def size_of(declared: Size, config: Any) -> int | AnySize:
    """Return a dimension of a tensor, or what equals any if the config leaves it to the file."""
    found = declared if isinstance(declared, int) else getattr(config, declared)
    return ANY if found is None else int(found)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """Return what the architecture's tables call a tensor."""
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(prefix):
            return prefixes[prefix] + name.removeprefix(prefix)
    return name


def check_table(kind: type[Module]) -> None:
    """Raise TypeError if a module class, or one below it, declares an attribute that is no tensor and no layers."""
    for _, declared, _ in table(kind):
        if isinstance(declared, LayersField):
            check_table(declared.module)


def table(kind: type[Module]) -> Iterator[tuple[str, TensorField | LayersField, type]]:
    """Yield each declared attribute of a module class: its name, its declaration and Matrix or Array."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name == "config":
            continue  # annotated by a plugin for its own type checker
        declared = field.metadata.get("tensor") or field.metadata.get("layers")
        if declared is None:
            raise TypeError(f"{kind.__name__}.{field.name} is neither tensor(...) nor layers(...)")
        hint = hints[field.name]
        choices = getattr(hint, "__args__", (hint,))
        yield field.name, declared, Matrix if Matrix in choices else Array
