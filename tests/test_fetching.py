"""Images that requests name by URL: nothing is fetched but what the operator allows, from where it may be."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from puna.api.fetching import Fetcher, is_public
from puna.api.media import MediaReader, decode_base64
from puna.core.errors import BadRequest

pytestmark = pytest.mark.asyncio

IMAGE = b"\x89PNG the image"


class Origin:
    """An HTTP server of a few lines, which remembers what it was asked."""

    def __init__(self, answer: bytes = b"", *, silent: bool = False) -> None:
        self.answer = answer or answered(IMAGE)
        self.silent = silent
        self.asked: list[str] = []
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.silent:
                await reader.read()
            writer.write(self.answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


def answered(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


class Names:
    """A resolver, which remembers what it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        if not self.addresses:
            raise socket.gaierror("no such host")
        return list(self.addresses)


def fetcher(origin: Origin, *hosts: str, names: Names | None = None, **more) -> Fetcher:
    """A fetcher that may connect to this machine, unlike any other."""
    more = {"resolve": names or Names("127.0.0.1"), "allowed": lambda address: True, "ports": [origin.port]} | more
    return Fetcher(hosts or ("images.example",), **more)


async def refusal(found: Fetcher, url: str, limit: int = 1000) -> str:
    with pytest.raises(BadRequest) as error:
        await found.fetch(url, limit)
    return str(error.value)


async def test_an_image_is_fetched_from_the_address_that_was_resolved():
    names = Names("127.0.0.1")
    async with Origin().running() as origin:
        found = fetcher(origin, names=names)
        assert await found.fetch(f"http://images.example:{origin.port}/a%20b.png?x=1#part", 1000) == IMAGE
    [asked] = origin.asked
    assert asked.startswith("GET /a%20b.png?x=1 HTTP/1.1\r\n")
    assert f"\r\nhost: images.example:{origin.port}\r\n" in asked.lower()
    assert "authorization" not in asked.lower() and "cookie" not in asked.lower()
    assert names.asked == [("images.example", origin.port)]


@pytest.mark.parametrize(
    ("hosts", "url", "said"),
    [
        ((), "http://images.example/a.png", "this server fetches no images: send them as base64"),
        (("images.example",), "http://other.example/a.png", "this server fetches no images from other.example"),
        (("images.example",), "http://images.example.evil.org/a", "no images from images.example.evil.org"),
        (("*.images.example",), "http://images.example/a", "no images from images.example"),
        (("*.images.example",), "http://evilimages.example/a", "no images from evilimages.example"),
        (("images.example",), "http://images.example@evil.org/", "no images from evil.org"),
        (("images.example",), "http://images.example\\@evil.org/", "no images from evil.org"),
        (("images.example",), "http://user:secret@images.example/a", "must not hold a user name"),
        (("images.example",), "http://images.example:22/a", "or an unusual port"),
        (("images.example",), "https://images.example:8443/a", "or an unusual port"),
        (("images.example",), "http://127.0.0.1/a", "no images from 127.0.0.1"),
        (("images.example",), "http://[::1]/a", "no images from ::1"),
        (("images.example",), "http:///a", "no images from nowhere"),
        (("images.example",), "http://images.example:99999/a", "or an unusual port"),
        (("images.example",), "http://images.example:x/a", "no URL can be read from it"),
        (("images.example",), "http://" + "a" * 70000, "invalid image input"),
        (("images.example",), "http://images.example\n.evil.org/", "invalid image input"),
    ],
)
async def test_what_the_operator_does_not_allow_is_not_even_resolved(hosts, url, said):
    names = Names("127.0.0.1")
    assert said in await refusal(Fetcher(hosts, resolve=names), url)
    assert names.asked == []


async def test_names_below_a_listed_one_are_allowed():
    async with Origin().running() as origin:
        found = fetcher(origin, "*.images.example")
        assert await found.fetch(f"http://a.b.IMAGES.example:{origin.port}/", 1000) == IMAGE


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.1.2.3"], ["172.16.0.1"], ["192.168.1.1"], ["169.254.169.254"], ["100.64.0.1"], ["0.0.0.0"],
        ["::1"], ["fe80::1"], ["fe80::1%eth0"], ["fd00::1"], ["::ffff:127.0.0.1"], ["::ffff:8.8.8.8"], ["::"],
        ["64:ff9b::7f00:1"], ["2002:7f00:1::1"], ["224.0.0.1"], ["255.255.255.255"], ["8.8.8.8", "127.0.0.1"],
        ["2606:4700::1", "::1"], ["fec0::1"], ["feff::1"], ["::7f00:1"], ["::8.8.8.8"], [],
    ],
)  # fmt: skip
async def test_addresses_that_are_not_the_internets_are_not_connected_to(addresses):
    async with Origin().running() as origin:
        found = fetcher(origin, names=Names(*addresses), allowed=is_public)
        said = await refusal(found, f"http://images.example:{origin.port}/a")
    assert said == "the image at images.example could not be fetched"
    assert origin.asked == []


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
async def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


async def test_redirects_are_not_followed():
    answer = answered(b"", "302 Found", "Location: /elsewhere")
    async with Origin(answer).running() as origin:
        said = await refusal(fetcher(origin), f"http://images.example:{origin.port}/a")
    assert said == "the image at images.example could not be fetched"
    assert len(origin.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        answered(b"secret", "404 Not Found"),
        answered(IMAGE, "200 OK", "Content-Encoding: gzip"),
        answered(IMAGE, length=1000),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx",
    ],
)
async def test_answers_without_an_image_tell_nothing(answer):
    async with Origin(answer).running() as origin:
        said = await refusal(fetcher(origin), f"http://images.example:{origin.port}/a")
    assert said == "the image at images.example could not be fetched"


async def test_a_port_that_nobody_listens_on_tells_the_same():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        found = Fetcher(["images.example"], resolve=Names("127.0.0.1"), allowed=lambda address: True, ports=[port])
        said = await refusal(found, f"http://images.example:{port}/a")
    assert said == "the image at images.example could not be fetched"


@pytest.mark.parametrize("answer", [answered(b"x" * 5000), answered(b"x" * 5000).replace(b"Content-Length", b"X")])
async def test_an_image_is_not_read_beyond_its_limit(answer):
    async with Origin(answer).running() as origin:
        said = await refusal(fetcher(origin), f"http://images.example:{origin.port}/a", 4999)
        assert said == "the image at images.example has more than the 4999 bytes that are left for it"
        assert len(await fetcher(origin).fetch(f"http://images.example:{origin.port}/a", 5000)) == 5000


async def test_a_server_that_says_nothing_is_not_waited_for():
    async with Origin(silent=True).running() as origin:
        said = await refusal(fetcher(origin, patience_s=0.2), f"http://images.example:{origin.port}/a")
    assert said == "the image at images.example did not come within 0.2 s"


async def test_images_of_all_kinds_share_one_limit():
    async with Origin().running() as origin:
        reader = MediaReader(fetcher(origin), most_bytes=30)
        url = f"http://images.example:{origin.port}/a"
        assert (await reader.image(url)).frames == [IMAGE]
        assert (await reader.image("data:image/png;base64,AAAA")).frames == [b"\0\0\0"]
        with pytest.raises(BadRequest, match="more than the 13 bytes"):
            await reader.image(url)
        with pytest.raises(BadRequest, match="the images of a request are too large by 2 bytes"):
            await reader.images(["A" * 20])


async def test_a_field_of_base64_is_never_fetched():
    async with Origin().running() as origin:
        with pytest.raises(BadRequest, match="illegal base64 data at input byte 4"):
            await MediaReader(fetcher(origin)).images([f"http://images.example:{origin.port}/a"])
    assert origin.asked == []


@pytest.mark.parametrize(
    ("text", "place"),
    [  # as Go's decoder has it
        ("a", 0), ("aG", 0), ("aGk", 0), ("aGkha", 4), ("!", 0), ("a!", 1), ("aG!", 2), ("aGk!", 3), ("aGkh!", 4),
        ("=", 0), ("a=", 1), ("aG=", 3), ("aG=x", 2), ("aG==x", 4), ("aGk=x", 4), ("aGk==", 4), ("aG===", 4),
        ("====", 0), ("aGkh=", 4), ("aGkh====", 4), ("aGkh==", 4),
        ("aGkhaG=", 7), ("aGkh\naG=", 7), ("a-_b", 1), ("aG k", 2), ("aGk=\naGk=", 4),
    ],
)  # fmt: skip
async def test_base64_that_is_wrong_is_refused_with_its_place(text, place):
    with pytest.raises(BadRequest, match=f"^illegal base64 data at input byte {place}$"):
        decode_base64(text)


async def test_base64_of_every_length_is_decoded():
    assert [decode_base64(text) for text in ("", "aA==", "aGk=", "aGkh", "a\nG\r\nkh\n")] == [
        b"", b"h", b"hi", b"hi!", b"hi!",
    ]  # fmt: skip
