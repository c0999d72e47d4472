"""Opens a weight source with the architecture that answers to it: config, tensors, forward pass, cache layout."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints

from .errors import BadModel
from .keys import Keys
from .plugin import Architecture, Array, CacheLayer, Config, LayersField, Matrix, Model, Module, TensorField
from .tensor.source import TensorInfo, WeightSource

log = logging.getLogger(__name__)

MANY = 64  # complaints after which a file is beyond saving


class Loader(Protocol):
    """Puts tensors where a backend can compute with them."""

    def matrix(self, source: WeightSource, info: TensorInfo) -> Matrix:
        """Return a two-dimensional tensor in the backend's layout."""

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


def find_architecture(architectures: Sequence[Architecture], source: WeightSource) -> Architecture:
    """Return the first architecture that answers to source. Raises BadModel naming what was asked for."""
    for architecture in architectures:
        if architecture.answers_to(source.kind, source.metadata):
            return architecture
    key = "general.architecture" if source.kind == "gguf" else "architectures"
    known = ", ".join(sorted({name for a in architectures for name in (a.gguf if source.kind == "gguf" else a.hf)}))
    raise BadModel(f"no plugin provides {key} = {source.metadata.get(key)!r}; installed: {known or 'none'}")


def load_model(architecture: Architecture, source: WeightSource, loader: Loader) -> LoadedModel:
    """Return the model in source. Raises BadModel naming each missing or misshapen tensor."""
    config = read_config(architecture, source)
    binder = _Binder(source, loader, config)
    model: Any = binder.module(architecture.model, "", "")
    binder.finish()
    layout = architecture.cache(config)
    return LoadedModel(architecture, config, model, layout, binder.nbytes)


def read_config(architecture: Architecture, source: WeightSource) -> Config:
    """Return the sizes that source gives for architecture."""
    if source.kind == "gguf":
        prefix = f"{source.metadata['general.architecture']}."
        config: Config = architecture.config.from_gguf(Keys(source.metadata, prefix=prefix, origin="GGUF metadata"))
    else:
        config = architecture.config.from_hf(Keys(source.metadata, origin="config.json"))
    return config


class _Binder:
    """Walks the tensor table of a module class and fills an instance, collecting every complaint before it speaks."""

    def __init__(self, source: WeightSource, loader: Loader, config: Config) -> None:
        self._source, self._loader, self._config = source, loader, config
        self._used: set[str] = set()
        self._problems: list[str] = []
        self.nbytes = 0

    def module(self, kind: type[Module], gguf: str, hf: str) -> Module:
        """Return a filled instance. gguf, hf: what stands in front of its tensors' names."""
        made = kind()
        made.config = self._config
        for field, declared, wanted in _table(kind):
            if isinstance(declared, LayersField):
                setattr(made, field, list(self._layers(declared, gguf, hf)))
            else:
                setattr(made, field, self._tensor(made, declared, wanted, gguf, hf))
        if not self._problems:
            made.ready()
        return made

    def finish(self) -> None:
        """Raise what was found wrong, and warn of tensors that nothing asked for."""
        if self._problems:
            shown = "; ".join(self._problems[:8])
            more = f"; and {len(self._problems) - 8} more" if len(self._problems) > 8 else ""
            raise BadModel(f"the model's tensors do not fit its architecture: {shown}{more}")
        unused = [name for name in self._source.tensors if name not in self._used]
        if unused:
            log.warning("%d tensors are not used by this architecture: %s", len(unused), ", ".join(unused[:8]))

    def _layers(self, declared: LayersField, gguf: str, hf: str) -> Iterator[Module]:
        for layer in range(getattr(self._config, declared.count)):
            if len(self._problems) > MANY:
                return  # a count from a hostile file must not keep us busy
            yield self.module(declared.module, gguf + declared.gguf.format(layer), hf + declared.hf.format(layer))

    def _tensor(self, made: Module, declared: TensorField, wanted: type, gguf: str, hf: str) -> Any:
        name = self._name(declared, gguf, hf)
        info = self._source.tensors.get(name) if name is not None else None
        shape = tuple(size if isinstance(size, int) else getattr(self._config, size) for size in declared.shape)
        if info is None:
            if declared.tied is not None:
                return getattr(made, declared.tied)
            if not declared.optional and name is not None:
                self._problems.append(f"{name} is missing (expected {list(shape)})")
            return None
        self._used.add(info.name)
        if info.shape != shape:
            self._problems.append(f"{info.name} is {list(info.shape)}, expected {list(shape)}")
            return None
        if self._problems:
            return None  # nothing will run: only look for more to report
        loaded = self._loader.matrix(self._source, info) if wanted is Matrix else self._loader.array(self._source, info)
        self.nbytes += getattr(loaded, "nbytes", 0)
        return loaded

    def _name(self, declared: TensorField, gguf: str, hf: str) -> str | None:
        name, prefix = (declared.gguf, gguf) if self._source.kind == "gguf" else (declared.hf, hf)
        return None if name is None else prefix + name


def check_table(kind: type[Module]) -> None:
    """Raise TypeError if a module class, or one below it, declares an attribute that is no tensor and no layers."""
    for _, declared, _ in _table(kind):
        if isinstance(declared, LayersField):
            check_table(declared.module)


def _table(kind: type[Module]) -> Iterator[tuple[str, TensorField | LayersField, type]]:
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
