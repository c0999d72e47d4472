"""Who may call: origins of browsers, and the Host header."""

import socket
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from puna.api.access import Access, matches
from puna.core.settings import Address, Settings


def client(**changes):
    async def hello(request):
        return PlainTextResponse("hello")

    settings = replace(Settings(), **changes)
    app = Starlette(routes=[Route("/", hello, methods=["GET", "POST"])])
    return TestClient(Access(app, settings=settings), base_url="http://localhost:11434")


OPEN = Address("http", "0.0.0.0", 11434)


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://localhost:3000", "http://127.0.0.1:8080", "http://0.0.0.0", "app://obsidian.md",
     "file://", "tauri://localhost", "vscode-webview://abc", "HTTP://LOCALHOST:1"],
)  # fmt: skip
def test_pages_of_this_machine_may_read_answers(origin):
    answer = client().get("/", headers={"Origin": origin})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["http://example.com", "null", "http://localhost.example.com", "chrome-extension://abc", "http://localhostx"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_origins_are_refused_with_an_empty_body(method, origin):
    answer = client().request(method, "/", headers={"Origin": origin})
    assert (answer.status_code, answer.content) == (403, b"")


def test_the_servers_own_pages_need_no_cors():
    own = client(host=OPEN, allowed_hosts=("puna.example",))
    answer = own.get("/", headers={"Origin": "https://puna.example", "Host": "puna.example"})
    assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (200, False)


def test_configured_origins_come_on_top():
    allowed = client(origins=("https://*.example.com", "chrome-extension://abc"))
    assert allowed.get("/", headers={"Origin": "https://chat.example.com"}).status_code == 200
    assert allowed.get("/", headers={"Origin": "chrome-extension://abc"}).status_code == 200
    assert allowed.get("/", headers={"Origin": "http://localhost:3000"}).status_code == 200
    assert allowed.get("/", headers={"Origin": "https://example.org"}).status_code == 403


def test_a_lone_star_allows_all_and_says_so():
    answer = client(origins=("*",)).get("/", headers={"Origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_preflight_is_answered_without_reaching_the_endpoint():
    answer = client().options("/", headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": "PUT"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert answer.headers["access-control-max-age"] == "43200"
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["vary"] == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    names = answer.headers["access-control-allow-headers"].split(",")
    assert {"Authorization", "Content-Type", "OpenAI-Beta", "x-stainless-retry-count"} <= set(names)
    assert len(names) == 18


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:11434", "LOCALHOST:1", "127.0.0.1:11434", "[::1]:11434", "::1", "192.168.1.7",
     "10.0.0.1:80", "0.0.0.0", "puna.localhost", "box.local:11434", "model.internal", "", socket.gethostname()],
)  # fmt: skip
def test_local_hosts_pass_a_loopback_listener(host):
    assert client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["example.com", "evil.example:11434", "8.8.8.8", "localhost.example.com", "[2001:4860::8]"]
)
def test_other_hosts_are_refused_by_a_loopback_listener(host):
    for method in ("GET", "OPTIONS"):
        answer = client().request(method, "/", headers={"Host": host})
        assert (answer.status_code, answer.content) == (403, b"")


def test_a_page_that_rebinds_its_name_to_this_machine_is_refused():
    answer = client().get("/", headers={"Host": "evil.example:11434", "Origin": "http://evil.example:11434"})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["8.8.8.8:11434", "[2001:4860::8]", "192.168.1.7", "localhost", "box.local"])
def test_an_open_listener_may_be_called_by_any_address_or_local_name(host):
    assert client(host=OPEN).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("listener", [OPEN, Settings().host])
def test_a_rebound_name_is_refused_on_every_bind_unless_it_is_listed(listener):
    rebound = {"Host": "evil.example:11434", "Origin": "http://evil.example:11434"}
    listed = client(host=listener, allowed_hosts=("puna.example", "*.lan.example"))
    assert client(host=listener).get("/", headers=rebound).status_code == 403
    assert listed.get("/", headers=rebound).status_code == 403
    assert listed.get("/", headers={"Host": "Puna.example:11434"}).status_code == 200
    assert listed.get("/", headers={"Host": "box.lan.example"}).status_code == 200


def test_options_by_a_local_name_is_answered_at_once():
    assert client().options("/").status_code == 204
    assert client().options("/", headers={"Host": "127.0.0.1"}).status_code == 405


def test_a_pattern_matches_no_origin_shorter_than_itself():
    assert matches("http://a*a", "http://aba") and matches("http://a*a", "http://aa")
    assert not matches("http://a*a", "http://a")
