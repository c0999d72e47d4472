"""Hostile images against `puna serve`: each ends in a reply or in a refusal that says why, and harms nobody else.

What the decoders are spared is tested file by file in test_picture_bombs.py; here the files come over HTTP, into
processes whose memory is watched.
"""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image, features

from puna.core.image_files import MOST_PIXELS
from puna.core.scheduler.viewer import THREADS
from puna.store import digest_of

from .test_picture_bombs import BOMBS, tiff
from .test_pictures import LOSSLESS, big_endian, chunk, corners, encoded, noise, png, with_orientation

FILES = sorted((Path(__file__).parent / "fixtures" / "gemma3-vl" / "hf").iterdir())
IMAGE_CACHE = 1 << 20
PIXEL_BYTES = 2 * 4  # a picture while it is decoded: as its decoder makes it, and as it is returned
DECODER = 8 << 20  # bytes of a decoder's own tables and lines
COPIES = 8  # of a request's body that a server may have at once: bytes, text, parsed, decoded, framed and being sent
LARGEST_FILE = 16 << 20  # of those sent here
LARGE = {"100 MB of nothing", "an AVIF of 20 MB"}
FORMATS = [*LOSSLESS, "JPEG"]
ORDINARY = encoded(corners(), "PNG")


# ---- files -----------------------------------------------------------------------------------------------------------


def frames(format: str) -> bytes:
    pictures = [Image.new("RGB", (32, 32), (9 * number, 0, 0)) for number in range(20)]
    return encoded(pictures[0], format, save_all=True, append_images=pictures[1:])


def interlaced() -> bytes:
    """A PNG of 8 x 8 grey pixels in seven passes."""
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    rows = b"".join((b"\0" + b"\x80" * width) * height for width, height in passes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def looping(*tags: tuple[int, int, int, int], following: int = 8) -> bytes:
    """A TIFF whose table of tags is followed by itself; tags may lead back to it too."""
    data = bytearray(tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), *tags,
                          (278, 4, 1, 8), (279, 4, 1, 64)))  # fmt: skip
    count = struct.unpack_from("<H", data, 8)[0]
    struct.pack_into("<I", data, 10 + 12 * count, following)
    return bytes(data)


def strip(*tags: tuple[int, int, int, int], **options: int) -> bytes:
    """The same with the place of its pixels."""
    at = 8 + 2 + 12 * (8 + len(tags)) + 4
    return looping(*tags, (273, 4, 1, at), **options)


def largest(colour: int) -> bytes:
    """A PNG of as many pixels as are read, all of one colour."""
    packer, row = zlib.compressobj(1), b"\0" + bytes([colour]) * 3 * 8192
    packed = b"".join([*(packer.compress(row) for _ in range(MOST_PIXELS // 8192)), packer.flush()])
    return png(8192, MOST_PIXELS // 8192, 8, 2, b"", compressed=packed)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("image.png", ORDINARY)
    return file.getvalue()


def rotated(exif: bytes, format: str = "JPEG") -> bytes:
    return encoded(corners(), format, exif=exif)


NO_IMAGES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a byte": lambda: b"\0",
    "text": lambda: b"I am an image, believe me. " * 1000,
    "PDF": lambda: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "ZIP": archive,
    "SVG": lambda: b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaa">]><svg xmlns="http://www.w3.org/2000/svg">&a;</svg>',
    "HTML": lambda: b"<!DOCTYPE html><img src=x onerror=alert(1)>",
    "a program": lambda: b"\x7fELF" + b"\0" * 4000,
    "a video": lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 4000,
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(ls) run\n%%EOF",
    "JPEG 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 400,
    "PPM": lambda: b"P6 100000 100000 255\n" + b"\0" * 400,
    "an icon": lambda: encoded(corners(), "ICO"),
}  # fmt: skip
CUT: dict[str, Callable[[], bytes]] = {
    f"the beginning of a {format}": lambda format=format: noise(format)[:20] for format in FORMATS
} | {f"half a {format}": lambda format=format: half(noise(format)) for format in FORMATS}
TOO_MUCH: dict[str, Callable[[], bytes]] = {
    "a PNG of 60000 x 60000": lambda: png(60000, 60000, 8, 6, b"\0" * 1000),
    "a PNG of 60000 x 1200 that is there": lambda: png(60000, 1200, 1, 0, (b"\0" * 7501) * 1200),
} | {name: make for name, make in BOMBS.items() if name not in LARGE}
REFUSED = NO_IMAGES | CUT | TOO_MUCH

READ: dict[str, Callable[[], bytes]] = {
    "1 x 1": lambda: encoded(Image.new("RGB", (1, 1)), "PNG"),
    "1 x 20000": lambda: encoded(Image.new("RGB", (1, 20000)), "PNG"),
    "20000 x 1": lambda: encoded(Image.new("RGB", (20000, 1)), "PNG"),
    "a GIF that moves": lambda: frames("GIF"),
    "a WebP that moves": lambda: frames("WEBP"),
    "a PNG that moves": lambda: frames("PNG"),
    "a TIFF of pages": lambda: frames("TIFF"),
    "a JPEG for printers": lambda: encoded(corners("CMYK"), "JPEG"),
    "a JPEG in many passes": lambda: encoded(corners(), "JPEG", progressive=True),
    "a JPEG with as much EXIF as fits": lambda: rotated(with_orientation(6) + b"\xff" * 65000),
    "a JPEG whose EXIF tells of four thousand million values": lambda: rotated(
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 0x0112, 3, 0xFFFFFFFF, 6) * 4000
    ),
    "a JPEG whose EXIF begins at its end": lambda: rotated(b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "a WebP with EXIF of a strange type": lambda: rotated(big_endian(6, type=99), "WEBP"),
    "a PNG of 16 bits": lambda: encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "PNG"),
    "a PNG in passes": interlaced,
    "a PNG with a profile of noise": lambda: encoded(corners(), "PNG", icc_profile=b"\xff\x00" * 200_000),
    "a JPEG with a profile of noise": lambda: encoded(corners(), "JPEG", icc_profile=b"\xff\x00" * 200_000),
    "a palette of one bit": lambda: encoded(corners("1"), "PNG"),
    "a TIFF after which it begins anew": strip,
}
DAMAGED: dict[str, Callable[[], bytes]] = {
    "a palette that is too short": lambda: png(4, 1, 8, 3, b"\0\0\1\xfe\xff", chunk(b"PLTE", b"\1\2\3")),
    "a palette that is not there": lambda: png(4, 1, 8, 3, b"\0\0\1\xfe\xff"),
    "a PNG with pixels for a thousand": lambda: png(10, 10, 8, 2, b"\0" * 10**8),
    "a PNG with no pixels": lambda: png(100, 100, 8, 2, b""),
    "a TIFF whose tables are in each other": lambda: strip((330, 4, 1, 8), (34665, 4, 1, 8), (34853, 4, 1, 8)),
    "a TIFF whose next table is nowhere": lambda: strip(following=0xFFFFFFF0),
    "a TIFF without a place": looping,
} | {
    f"{format} that lacks its end": lambda format=format: noise(format)[:-2] for format in FORMATS
}  # fmt: skip
if features.check("avif"):
    READ["AVIF"] = lambda: encoded(corners(), "AVIF")
    DAMAGED["AVIF of its first half"] = lambda: half(noise("AVIF"))

GARBAGE = [
    "!!!!", "AAA", "=", "A" * 5, "a\u00e9b=", "data:image/png;base64,####", "data:image/png;base64", "data:,hello",
    "data:", "data:text/html;base64,PGh0bWw+", "data:image/png;charset=x,abc", "javascript:alert(1)", "file:///etc/passwd",
    "http://127.0.0.1:1/a.png", "ftp://example.org/a.png", "\0", "%00", "/etc/passwd",
]  # fmt: skip


# ---- a server --------------------------------------------------------------------------------------------------------


FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", *(["AVIF"] if features.check("avif") else [])]


def small(kind: str) -> bytes:
    """Return an image of that format."""
    return encoded(Image.new("RGB", (32, 32)), kind)


@dataclass
class Process:
    """A process whose largest memory is watched from now on."""

    pid: int
    before: int = field(init=False)

    def __post_init__(self) -> None:
        with suppress(OSError):  # else the peak of its start counts as what it had
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.before = self.peak()

    def peak(self) -> int:
        """The most bytes it had resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    @property
    def grown(self) -> int:
        return self.peak() - self.before


class Server:
    """A server with a model that sees."""

    def __init__(self, http: httpx2.Client, pid: int) -> None:
        self.http = http
        self._create()
        for file in (ORDINARY, *map(small, FORMATS)):  # loads decoders, so that what is watched is what images take
            assert self.chat(file).status_code == 200
        self.process, self.runner = Process(pid), Process(self.runner_pid(pid))

    @staticmethod
    def runner_pid(pid: int) -> int:
        (runner,) = psutil.Process(pid).children()
        return runner.pid

    def _create(self) -> None:
        digests = {file.name: str(digest_of(file)) for file in FILES}
        for file in FILES:
            self.http.post(f"/api/blobs/{digests[file.name]}", content=file.read_bytes()).raise_for_status()
        self.http.post("/api/create", json={"model": "eye", "files": digests, "stream": False}).raise_for_status()

    def chat(self, file: bytes) -> httpx2.Response:
        return self.native(base64.b64encode(file).decode())

    def native(self, text: str) -> httpx2.Response:
        message = {"role": "user", "content": "What is it?", "images": [text]}
        body = {"model": "eye", "messages": [message], "stream": False, "options": {"num_predict": 1}}
        return self.http.post("/api/chat", json=body)

    def openai(self, url: str) -> httpx2.Response:
        parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "eye", "messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        return self.http.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    environment = os.environ | {
        "PUNA_HOST": "127.0.0.1:0", "PUNA_MODELS": str(folder / "models"), "PUNA_IMAGE_CACHE": str(IMAGE_CACHE),
        "PUNA_NUM_PARALLEL": "2", "PUNA_CONTEXT_LENGTH": "256", "PUNA_KEEP_ALIVE": "-1",
    }  # fmt: skip
    command = [sys.executable, "-c", "from puna.cli import main; main()", "serve"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[4].rstrip(",")
            with httpx2.Client(base_url=url, timeout=300, trust_env=False) as http:
                yield Server(http, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


@dataclass
class Said:
    """What a server answered to one image."""

    name: str
    status: int
    text: str

    @property
    def error(self) -> str:
        """Why it was refused: a sentence for the one who sent it, without what only a programmer would understand."""
        error = httpx2.Response(self.status, text=self.text).json()["error"]
        said = error if isinstance(error, str) else error["message"]
        assert not re.search(r"0x[0-9a-f]{6}|Traceback|\.py\b|PIL|Error\b", said), self
        return said


@pytest.fixture(scope="module")
def answers(server) -> dict[str, list[Said]]:
    """What every file is answered with in both APIs, the largest of them two at a time, and all the garbage."""
    said: dict[str, list[Said]] = {"refused": [], "read": [], "damaged": [], "garbage": []}

    def send(group: str, name: str, answer: httpx2.Response) -> None:
        said[group].append(Said(name, answer.status_code, answer.text))

    for group, files in (("refused", REFUSED), ("read", READ), ("damaged", DAMAGED)):
        for name, make in files.items():
            data = make()
            assert len(data) <= LARGEST_FILE, name
            send(group, name, server.chat(data))
            send(group, name, server.openai(f"data:image/png;base64,{base64.b64encode(data).decode()}"))
    with ThreadPoolExecutor(THREADS) as clients:
        for answer in clients.map(server.chat, [largest(number) for number in range(THREADS)]):
            send("read", "as many pixels as are read", answer)
    for text in GARBAGE:
        send("garbage", text, server.native(text))
        send("garbage", text, server.openai(text))
    return said


# ---- what becomes of them --------------------------------------------------------------------------------------------


def test_what_is_no_image_or_a_bomb_is_refused_with_a_reason(answers):
    for said in answers["refused"]:
        assert said.status == 400, said
        assert "image" in said.error, said


def test_odd_images_are_read(answers):
    assert [said for said in answers["read"] if said.status != 200] == []


def test_damaged_images_are_read_or_refused_with_a_reason(answers):
    for said in answers["damaged"]:
        assert said.status == 200 or (said.status == 400 and "image" in said.error), said


def test_garbage_in_place_of_images_is_refused_with_a_reason(answers):
    for said in answers["garbage"]:
        assert said.status == 400, said
        assert said.error, said


def test_afterwards_the_same_process_sees_as_before(answers, server):
    answer = server.chat(ORDINARY).json()
    assert answer["done"] is True
    assert server.runner_pid(server.process.pid) == server.runner.pid


def test_none_of_them_takes_more_memory_than_the_limits_allow(answers, server):
    each = MOST_PIXELS * PIXEL_BYTES + LARGEST_FILE + DECODER
    assert server.runner.grown <= IMAGE_CACHE + THREADS * each
    assert server.process.grown <= COPIES * LARGEST_FILE
