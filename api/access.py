"""Who may call: the Origin rules for browsers (CORS), and the Host rule against DNS rebinding."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..core.settings import Settings

METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
STAINLESS = (  # what OpenAI's and Anthropic's SDKs say about themselves
    "arch", "async", "custom-poll-interval", "helper-method", "lang", "os", "package-version", "poll-helper",
    "retry-count", "runtime", "runtime-version", "timeout",
)  # fmt: skip
HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta"]
    + [f"x-stainless-{name}" for name in STAINLESS]
)
LOCAL_ORIGINS = tuple(
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104
    for port in ("", ":*")
) + ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


class Access:
    """ASGI middleware that turns strangers away before any endpoint runs."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._origins = settings.origins + LOCAL_ORIGINS
        self._only_local_hosts = _is_loopback(settings.host.host)
        self._names = settings.allowed_hosts
        self._own_addresses = frozenset(_own_addresses())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it: a preflight, or 403 with an empty body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is None or origin in (f"http://{host}", f"https://{host}"):
            cors = None
        else:
            cors = self._cors_headers(origin, preflight=scope["method"] == "OPTIONS")
            if cors is None:
                await Response(status_code=403)(scope, receive, send)
                return
            if scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=cors)(scope, receive, send)
                return
        await self._after_cors(scope, receive, _adding(cors, send) if cors else send, host)

    async def _after_cors(self, scope: Scope, receive: Receive, send: Send, host: str) -> None:
        name = _without_port(host).lower()
        by_name = _is_local_name(name) or any(matches(pattern, name) for pattern in self._names)
        if not by_name and not self._is_address(name):
            await Response(status_code=403)(scope, receive, send)
            return
        if by_name and scope["method"] == "OPTIONS":
            await Response(status_code=204)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _cors_headers(self, origin: str, *, preflight: bool) -> dict[str, str] | None:
        """Return the headers that let a page of origin read the answer; None if it may not."""
        if not any(matches(pattern, origin) for pattern in self._origins):
            return None
        headers = {"Access-Control-Allow-Origin": "*" if "*" in self._origins else origin}
        if not preflight:
            return headers | {"Vary": "Origin"}
        return headers | {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": HEADERS,
            "Access-Control-Max-Age": "43200",
            "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        }

    def _is_address(self, name: str) -> bool:
        """Whether name is empty or an address that is ours; a server that others may reach cannot know them all.

        What remains are names. A web site can make one of its own point here (DNS rebinding), so they must be listed.
        """
        try:
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return not name
        if not self._only_local_hosts:
            return True
        return address.is_loopback or address.is_private or address.is_unspecified or address in self._own_addresses


def matches(pattern: str, origin: str) -> bool:
    """Whether origin fits pattern, which may hold one *. Letter case does not matter."""
    pattern, origin = pattern.lower(), origin.lower()
    head, star, tail = pattern.partition("*")
    if not star:
        return origin == pattern
    return len(origin) >= len(head) + len(tail) and origin.startswith(head) and origin.endswith(tail)


def _adding(headers: dict[str, str], send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers


def _without_port(host: str) -> str:
    """Return the name or address in a Host header; an IPv6 address loses its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _is_local_name(name: str) -> bool:
    return name in ("localhost", socket.gethostname().lower()) or name.endswith(LOCAL_SUFFIXES)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _own_addresses() -> Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    for addresses in psutil.net_if_addrs().values():
        for item in addresses:
            if item.family in (socket.AF_INET, socket.AF_INET6):
                yield ipaddress.ip_address(item.address.partition("%")[0])
