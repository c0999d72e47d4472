"""The client: typed answers, errors in the server's own words, and streams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from puna.cli.client import Client, NotRunning

from .cli_fake import Fake, fake_server


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with Client(fake.url) as client:
        yield client


def test_a_port_that_nobody_listens_on_is_reported_with_the_way_to_start_a_server():
    with Client("http://127.0.0.1:9") as client, pytest.raises(NotRunning, match="puna serve"):
        client.check()


def test_a_running_server_passes_the_check(client: Client):
    client.check()
