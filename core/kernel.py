"""The microkernel: finds plugins, owns the settings, and wires loading and scheduling together."""

from __future__ import annotations

import asyncio
import importlib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from types import ModuleType
from typing import cast

import pluggy

from .memory.cache import ElementType
from .model import check_table
from .plugin import Architecture, Encoder, Hooks
from .scheduler.engine import EngineOptions
from .scheduler.inline import InlineRunner, TextParts
from .scheduler.local import LocalRunner
from .scheduler.models import ModelFiles, ModelLimits, Models
from .scheduler.plan import Limits
from .scheduler.runner import Runner
from .scheduler.wire import Load
from .settings import Settings
from .tensor.threads import default_threads

log = logging.getLogger(__name__)

GROUP = "puna"  # the entry-point group


@dataclass(frozen=True)
class PluginReport:
    """What became of one plugin."""

    name: str
    distribution: str  # "" for one named in PUNA_PLUGINS
    version: str
    architectures: tuple[Architecture, ...] = ()
    error: str | None = None  # one line; None if it works
    traceback: str | None = None

    @property
    def names(self) -> list[str]:
        """Every architecture name it answers to."""
        return [name for a in self.architectures for name in (*a.gguf, *a.hf)]


def find_plugins(development: tuple[str, ...] = ()) -> list[PluginReport]:
    """Return every plugin, working or not: the modules of `development` first, then the installed ones by name.

    A plugin that cannot be imported, whose hooks fail or whose names are taken disables only itself.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    taken: dict[str, str] = {}
    reports = []
    for name, distribution, version, load in _candidates(development):
        report = _activate(manager, PluginReport(name, distribution, version), load, taken)
        if report.error is not None:
            log.error("plugin %s is disabled: %s", name, report.error)
            log.debug("%s", report.traceback)
        reports.append(report)
    return reports


Candidate = tuple[str, str, str, Callable[[], ModuleType]]


def _candidates(development: tuple[str, ...]) -> Iterator[Candidate]:
    for module in development:
        yield module, "", "", lambda module=module: importlib.import_module(module)  # type: ignore[misc]
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
        yield entry.name, name, version, entry.load


def _activate(
    manager: pluggy.PluginManager, report: PluginReport, load: Callable[[], ModuleType], taken: dict[str, str]
) -> PluginReport:
    """Return the report of one plugin after trying it, and note its names in taken."""
    try:
        module = load()
        manager.register(module, name=report.name)
        try:
            working = replace(report, architectures=tuple(_provided(manager, module)))
            _check(working, taken)
        except BaseException:
            manager.unregister(module)
            raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything; it must not take Puna with it
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(report, error=line, traceback=traceback.format_exc())
    taken.update(dict.fromkeys(working.names, report.name))
    return working


def _provided(manager: pluggy.PluginManager, module: ModuleType) -> Iterator[Architecture]:
    manager.check_pending()
    for implementation in manager.hook.architectures.get_hookimpls():
        if implementation.plugin is module:
            for architecture in cast("list[Architecture]", implementation.function()):
                if not isinstance(architecture, Architecture):
                    raise TypeError(f"architectures() returned {architecture!r}, expected a list of Architecture")
                yield architecture


def _check(report: PluginReport, taken: Mapping[str, str]) -> None:
    """Raise if an architecture's tensor table is malformed or one of its names is taken."""
    for architecture in report.architectures:
        check_table(architecture.model)
        if architecture.vision is not None:
            check_table(architecture.vision)
            _check_encoder(architecture.vision)
    for name in report.names:
        if name in taken:
            raise ValueError(f"the architecture {name} is already provided by {taken[name]}")


def _check_encoder(kind: type[Encoder]) -> None:
    """Raise if an encoder does not say what prompts need to know of it."""
    for name in ("marker", "placeholder"):
        text = getattr(kind, name, None)
        if not isinstance(text, str) or not text:
            raise TypeError(f"{kind.__name__}.{name} is {text!r}, expected the text of a token")
    if not kind.media or not kind.media <= {"image", "video"}:
        raise TypeError(f"{kind.__name__}.media is {set(kind.media)}, expected some of image, video")
    if kind.together < 1:
        raise TypeError(f"{kind.__name__}.together is {kind.together}, expected 1 or more")


class Kernel:
    """Everything below the HTTP API. Belongs to one event loop; `close` it when done."""

    def __init__(self, settings: Settings, text: TextParts, entry: str | None = None) -> None:
        """Find the plugins. entry: the module that a runner's process runs; inline runners need none."""
        self.settings = settings
        self._entry = None if settings.runner == "inline" else entry
        assert self._entry is not None or settings.runner == "inline"
        self.plugins = find_plugins(settings.plugins)
        self.models = Models(
            self._load,
            ModelLimits(settings.max_loaded_models, settings.max_queue + settings.num_parallel, settings.keep_alive),
        )
        self._text = text
        self._options = EngineOptions(
            # one token more than there can be growing replies, so that a prompt always advances beside them
            Limits(max(settings.num_batch, settings.num_parallel + 1), settings.num_parallel),
            settings.num_threads or default_threads(),
            cast("ElementType", "f32" if settings.precise else settings.kv_cache_type),
            settings.num_parallel * settings.context_length,
            settings.precise,
            settings.speculate,
            settings.image_cache,
            settings.weights == "mmap",
        )

    @property
    def architectures(self) -> list[Architecture]:
        """What the working plugins provide."""
        return [architecture for report in self.plugins for architecture in report.architectures]

    async def close(self) -> None:
        """Unload every model."""
        await self.models.close()

    async def _load(self, model: ModelFiles) -> Runner:
        return await (self._load_inline(model) if self._entry is None else self._load_local(self._entry, model))

    async def _load_local(self, entry: str, model: ModelFiles) -> Runner:
        files = {name: str(path) for name, path in model.files.items()}
        draft = {name: str(path) for name, path in model.draft.items()}
        load = Load(
            files=files,
            draft=draft,
            options=self._options,
            plugins=self.settings.plugins,
            debug=self.settings.debug,
        )
        return await LocalRunner.start(
            entry, load, timeout_s=self.settings.load_timeout, step_timeout_s=self.settings.step_timeout
        )

    async def _load_inline(self, model: ModelFiles) -> Runner:
        made = asyncio.to_thread(
            InlineRunner, dict(model.files), self.architectures, self._text, self._options, draft=dict(model.draft)
        )
        loading = asyncio.create_task(made)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:  # a thread cannot be stopped, so what it makes has to be given back
            await (await loading).close()
            raise
