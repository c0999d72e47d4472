"""Images that a request only names by their URL, for operators who allow that.

A server that fetches what strangers name can be made to talk to machines that they cannot reach themselves. So nothing
is fetched unless the operator lists the host; its address is resolved once, has to be a public one, and is the one that
is connected to; redirects are not followed; and bytes and time are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

import httpx2

from ..core.errors import BadRequest
from .access import matches

log = logging.getLogger("puna.api")

PATIENCE_S = 20.0  # for a whole image
PORTS = (80, 443)  # others belong to services that have no images for strangers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Return every address of a host. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(where[0]) for *_, where in found]


_REFUSED = [  # besides those that Python knows
    ipaddress.ip_network("64:ff9b::/96"),  # leads to an IPv4 address, RFC 6052
    ipaddress.ip_network("::/96"),  # did so once, RFC 4291, section 2.5.5.1
    ipaddress.ip_network("fec0::/10"),  # a site's own, which RFC 3879 ends for new networks only
]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, and not of this machine, its networks or a special purpose."""
    try:
        found: Address = ipaddress.ip_address(address)
    except ValueError:  # with the scope of a link
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None or any(found in network for network in _REFUSED):
            return False  # most of them lead to an IPv4 address by a detour
    return found.is_global and not found.is_multicast


class Fetcher:
    """Fetches images from the hosts that the operator lists."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
        ports: Collection[int] = PORTS,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """hosts: names, or *.name for all below one. allowed: which addresses may be connected to."""
        self._hosts, self._resolve, self._allowed = tuple(hosts), resolve, allowed
        self._ports, self._patience_s = ports, patience_s

    async def fetch(self, url: str, limit: int) -> bytes:
        """Return what is at url, limit bytes at most. Raises BadRequest; it tells no more than it has to."""
        target = self._checked(url)
        try:
            async with asyncio.timeout(self._patience_s):
                address = await self._address(target)
                return await self._get(target, address, limit)
        except TimeoutError:
            raise BadRequest(f"the image at {target.host} did not come within {self._patience_s:g} s") from None
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            log.info("an image at %s could not be fetched: %r", target.host, error)
            raise BadRequest(f"the image at {target.host} could not be fetched") from None

    def _checked(self, url: str) -> httpx2.URL:
        """Return url if it may be fetched at all."""
        if not self._hosts:
            raise BadRequest("this server fetches no images: send them as base64, in a data URL")
        try:
            target = httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError):
            raise BadRequest("invalid image input: no URL can be read from it") from None
        if not any(matches(pattern, target.host) for pattern in self._hosts):
            raise BadRequest(f"this server fetches no images from {target.host or 'nowhere'}")
        if target.userinfo or _port(target) not in self._ports:
            raise BadRequest("an image's URL must not hold a user name, a password or an unusual port")
        return target

    async def _address(self, target: httpx2.URL) -> str:
        addresses = await self._resolve(target.host, _port(target))
        if not addresses or not all(map(self._allowed, addresses)):  # one of them is as good as all: it may be next
            raise OSError(f"{target.host} has addresses that may not be connected to: {addresses}")
        return addresses[0]

    async def _get(self, target: httpx2.URL, address: str, limit: int) -> bytes:
        # To the address itself, for a second look at the name might find another; the name is for the server there.
        pinned = target.copy_with(host=f"[{address}]" if ":" in address else address)
        headers = {"Host": target.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        extensions = {"sni_hostname": target.host}
        async with (
            httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._patience_s) as http,
            http.stream("GET", pinned, headers=headers, extensions=extensions) as response,
        ):
            if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
                raise OSError(f"status {response.status_code}, encoded as {response.headers.get('content-encoding')}")
            data = bytearray()
            async for block in response.aiter_raw():
                data += block
                if len(data) > limit:
                    raise BadRequest(f"the image at {target.host} has more than the {limit} bytes that are left for it")
            return bytes(data)


def _port(target: httpx2.URL) -> int:
    return target.port or (443 if target.scheme == "https" else 80)
