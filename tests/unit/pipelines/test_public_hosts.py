from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from segfleet.errors import DataError
from segfleet.public_hosts import PublicTransport, is_public
from segfleet_pipelines.public_hosts import open_client


class Resolver:
    """Answers look-ups from a table; a name's second answer may differ from its first."""

    def __init__(self, table: dict[str, list[list[str]]]) -> None:
        self.table = table
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.table[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def client(exempt: tuple[str, int] | None = None, down: frozenset[str] = frozenset()) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host in down:
            raise httpx.ConnectError("down", request=request)
        named = request.extensions.get("sni_hostname")
        return httpx.Response(200, json=[request.url.host, request.headers["Host"], named])

    return httpx.Client(transport=PublicTransport(exempt, httpx.MockTransport(answer)), trust_env=False)


def resolve(monkeypatch: pytest.MonkeyPatch, **table: list[list[str]]) -> Resolver:
    resolver = Resolver({name.replace("_", "."): answers for name, answers in table.items()})
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("2002:808:808::", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b:1::7f00:1", False),
        ("fec0::1", False),
        ("5f00::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = resolve(monkeypatch, rebind_example=[["8.8.8.8"], ["127.0.0.1"]])
    with client() as http:
        assert http.get("https://rebind.example/x").json() == ["8.8.8.8", "rebind.example", "rebind.example"]
        assert resolver.asked == ["rebind.example"]
        with pytest.raises(DataError, match=r"127\.0\.0\.1"):
            http.get("https://rebind.example/x")


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, mixed_example=[["8.8.8.8", "10.0.0.1"]])
    with client() as http, pytest.raises(DataError, match="--mirror"):
        http.get("http://mixed.example/")


def test_the_next_address_is_tried_when_one_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, two_example=[["2001:4860:4860::8888", "8.8.8.8"]])
    with client(down=frozenset({"2001:4860:4860::8888"})) as http:
        assert http.get("http://two.example/").json()[0] == "8.8.8.8"


def test_only_the_mirrors_own_port_is_exempt(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, files_lan=[["192.168.0.9"]])
    with client(exempt=("files.lan", 8000)) as http:
        assert http.get("http://files.lan:8000/").json() == ["192.168.0.9", "files.lan:8000", "files.lan"]
        with pytest.raises(DataError, match=r"192\.168\.0\.9"):
            http.get("http://files.lan:8001/")


def test_an_unknown_host_is_a_connection_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch)
    with client() as http, pytest.raises(httpx.ConnectError, match=r"nowhere\.example"):
        http.get("http://nowhere.example/")


def test_a_proxy_of_the_environment_is_used_and_does_not_open_the_local_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = resolve(monkeypatch)
    resolver.table["127.0.0.1"] = [["127.0.0.1"]]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "direct.example")
    with client() as http:
        with pytest.raises(httpx.ConnectError):
            http.get("http://files.example/")
        assert "files.example" not in resolver.asked
        for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254"):
            with pytest.raises(DataError, match="not a public host"):
                http.get(f"http://{host}/")
        resolver.table["direct.example"] = [["8.8.8.8"]]
        assert http.get("http://direct.example/").json()[0] == "8.8.8.8"


@pytest.mark.parametrize(
    "mirror", ["ftp://x/", "file:///etc", "x", "http://", "http://u:p@x/", "http://x/?q=1", "http://x:99999/"]
)
def test_a_mirror_that_is_no_plain_web_address_is_refused(mirror: str) -> None:
    with pytest.raises(DataError, match="mirror"):
        open_client(mirror)
