"""Every environment variable Puna reads, once: name, type, default, meaning.

`PUNA_X` is read first, then `OLLAMA_X` where Ollama has a variable of the same name and meaning. A value that does not
parse is refused with the name, the value and what is allowed; nothing falls back silently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from .durations import parse_duration
from .errors import BadSetting


def _setting(parse: Callable[[str], object], default: object, help: str, *, allowed: str, ollama: bool = False) -> Any:
    """Declare a field of Settings: how its text is read and what to say when it cannot be."""
    return field(default=default, metadata={"parse": parse, "help": help, "allowed": allowed, "ollama": ollama})


def _flag(text: str) -> bool:
    if text.lower() in ("1", "t", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "f", "false", "no", "off"):
        return False
    raise ValueError(text)


def _count(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(text)
        return value

    return parse


def _automatic(value: int) -> Callable[[str], int]:
    """Return a parser of counts for which 0, Ollama's "automatic", means our own default."""

    def parse(text: str) -> int:
        return _count(0)(text) or value

    return parse


def _patience(text: str) -> float | None:
    """Return seconds, or None for what Ollama takes for "as long as it takes"."""
    return parse_duration(text) or None


def _long_patience(text: str) -> float | None:
    """Return the same for what a runner's reports show, which come once a second."""
    value = _patience(text)
    if value is not None and value < 10.0:
        raise ValueError(text)
    return value


_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *(?:([kmgt]?)b?|([kmgt])ib)", re.IGNORECASE)


def _size(text: str) -> int:
    """Return bytes: 512MiB, 1.5G, 1000000. Units are powers of 1024 whether or not they are written with an i."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    number, short, long = match.groups()
    return int(float(number) * _UNITS[(long or short).lower()])


def _level(text: str) -> int:
    """Return how much to log: a number, or a truth value as OLLAMA_DEBUG has it."""
    return int(text) if text in ("0", "1", "2") else int(_flag(text))


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_ORIGIN_SCHEMES = ("http://", "https://", "chrome-extension://", "moz-extension://", "safari-extension://",
                   "ms-browser-extension://")  # fmt: skip


def _origins(text: str) -> tuple[str, ...]:
    origins = _names(text)
    for origin in origins:
        if origin.count("*") > 1 or ("*" not in origin and not origin.startswith(_ORIGIN_SCHEMES)):
            raise ValueError(origin)
    return origins


@dataclass(frozen=True)
class Address:
    """Where the server listens and clients connect."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL of a client of this server; an unspecified listen address becomes loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


_ADDRESS = re.compile(r"(?:(https?)://)?(\[.+\]|[\w.-]*)(?::([0-9]{1,5}))?/?")


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return Address("http", str(IPv6Address(text)), 11434)  # written without brackets, so without a port
    scheme, host, port = match.groups()
    if host.startswith("["):
        host = str(IPv6Address(host[1:-1]))
    number = int(port) if port else {"http": 80, "https": 443, None: 11434}[scheme]
    if number > 65535:
        raise ValueError(text)
    return Address(scheme or "http", host or "127.0.0.1", number)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in _names(text))
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?", host):
            raise ValueError(host)
    return hosts


def _directory(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~name of a user that does not exist
        raise ValueError(text) from error


@dataclass(frozen=True)
class Settings:
    """The values in force. Build one from the environment with `load_settings`, or directly in a test."""

    host: Address = _setting(
        _address, Address("http", "127.0.0.1", 11434), "where the server listens and clients connect",
        allowed="[scheme://]host[:port] with a port up to 65535", ollama=True,
    )  # fmt: skip
    models: Path = _setting(
        _directory, Path("~/.ollama/models").expanduser(), "the model store", allowed="a folder", ollama=True
    )
    keep_alive: float | None = _setting(
        parse_duration, 300.0, "how long an idle model stays loaded; negative: forever, 0: not at all",
        allowed="a duration such as 5m, 1h30m, 90s, or seconds", ollama=True,
    )  # fmt: skip
    num_parallel: int = _setting(
        _automatic(8),
        8,
        "replies of one model that are computed at once; 0: the default",
        allowed="a whole number",
        ollama=True,
    )
    max_loaded_models: int = _setting(
        _automatic(3), 3, "models in memory at once; 0: the default", allowed="a whole number", ollama=True
    )
    max_queue: int = _setting(
        _count(1), 512, "requests that may wait for a place", allowed="a whole number from 1", ollama=True
    )
    context_length: int = _setting(
        _automatic(4096),
        4096,
        "tokens a request may hold when it does not say; 0: the default",
        allowed="a whole number",
        ollama=True,
    )
    runner: str = _setting(
        _choice("local", "inline"),
        "local",
        "where models run: each in a process of its own (local), or all in the server's (inline)",
        allowed="local or inline",
    )
    load_timeout: float | None = _setting(
        _patience, 300.0, "how long a process may take to load its model; 0 or negative: as long as it takes",
        allowed="a duration such as 5m, 1h30m, 90s, or seconds", ollama=True,
    )  # fmt: skip
    step_timeout: float | None = _setting(
        _long_patience, 600.0,
        "how long a process may take for one step of its model; 0 or negative: as long as it takes",
        allowed="a duration from 10s, such as 5m, 1h30m, 90s, or seconds",
    )  # fmt: skip
    num_batch: int = _setting(
        _count(1), 512, "tokens of all replies that one step computes", allowed="a whole number from 1"
    )
    num_threads: int | None = _setting(
        _count(1), None, "threads of the kernels; unset: physical cores within the container's quota",
        allowed="a whole number from 1",
    )  # fmt: skip
    kv_cache_type: str = _setting(
        _choice("f16", "f32", "q8_0", "q4_0"),
        "f16",
        "element type of the key/value cache: f16, f32, q8_0 or q4_0",
        allowed="f16, f32, q8_0 or q4_0",
        ollama=True,
    )
    image_cache: int = _setting(
        _size, 512 << 20,
        "bytes that each model keeps of pictures, and of what its encoder made of them; "
        "requests in progress may hold 1 GB more",
        allowed="a number of bytes, such as 1073741824, 512MiB or 1GB; 0: nothing is kept",
    )  # fmt: skip
    speculate: bool = _setting(
        _flag, True, "guess tokens ahead where that makes replies faster; they stay the same", allowed="1 or 0"
    )
    weights: str = _setting(
        _choice("packed", "mmap"), "packed",
        "packed: in memory, as products read them; mmap: in the model's file, which may be larger than memory; slower",
        allowed="packed or mmap",
    )  # fmt: skip
    precise: bool = _setting(
        _flag, False, "compute as the reference does: float32 activations and caches, for comparisons",
        allowed="1 or 0",
    )  # fmt: skip
    origins: tuple[str, ...] = _setting(
        _origins, (), "extra origins that browsers may call from",
        allowed="a comma list of origins, each with at most one *", ollama=True,
    )  # fmt: skip
    allowed_hosts: tuple[str, ...] = _setting(
        _hosts, (), "names that requests may call this server by, besides addresses and local names",
        allowed="a comma list of host names, or *.name for all below one",
    )  # fmt: skip
    remote_media: tuple[str, ...] = _setting(
        _hosts, (), "hosts that images may be fetched from, where requests give their URLs; none: nothing is fetched",
        allowed="a comma list of host names, or *.name for all below one",
    )  # fmt: skip
    plugins: tuple[str, ...] = _setting(
        _names, (), "modules loaded as plugins besides the installed ones", allowed="a comma list of module names"
    )
    kernel_cache: Path = _setting(
        _directory, Path("~/.cache/puna/kernels").expanduser(), "compiled kernels", allowed="a folder"
    )
    debug: int = _setting(
        _level, 0, "0: log what an operator acts on, 1: what happens in detail", allowed="0, 1 or 2", ollama=True
    )
    noprune: bool = _setting(_flag, False, "leave unreferenced blobs alone at start", allowed="1 or 0", ollama=True)
    nohistory: bool = _setting(_flag, False, "keep no history of prompts", allowed="1 or 0", ollama=True)


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that environ asks for. Raises BadSetting for the first value that is not allowed."""
    return Settings(**{item.name: _read(item, environ) for item in fields(Settings)})


def read_setting(name: str, environ: Mapping[str, str] = os.environ) -> Any:
    """Return one setting, for what must be known before the rest of Puna is imported."""
    item = next(item for item in fields(Settings) if item.name == name)
    return _read(item, environ)


def _read(item: Field[Any], environ: Mapping[str, str]) -> Any:
    for prefix in ("PUNA_", "OLLAMA_") if item.metadata["ollama"] else ("PUNA_",):
        name = prefix + item.name.upper()
        text = environ.get(name, "").strip(" \t\r\n\"'")
        if text:
            return _parse(name, text, item.metadata)
    return item.default


def _parse(name: str, text: str, meta: Mapping[str, Any]) -> Any:
    try:
        return meta["parse"](text)
    except ValueError:
        raise BadSetting(name=name, value=text, allowed=meta["allowed"]) from None


def describe_settings() -> list[tuple[str, str, str]]:
    """Return (name, default, meaning) of every variable, for help texts and the documentation."""
    return [(f"PUNA_{item.name.upper()}", _shown(item.default), item.metadata["help"]) for item in fields(Settings)]


def _shown(value: object) -> str:
    if isinstance(value, Address):
        return f"{value.host}:{value.port}"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}s"
    return "" if value is None else str(value).replace(str(Path.home()), "~")
