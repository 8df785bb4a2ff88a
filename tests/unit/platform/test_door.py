from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from segfleet.address import authorities
from segfleet.door import Door
from segfleet.errors import SettingsError
from segfleet.server import connections
from segfleet.server.connections import ImpatientProtocol
from segfleet.server.public import opened
from segfleet.settings import Settings

ASKED = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
TLS = {"SEGFLEET_TLS_CERT": "/c.pem", "SEGFLEET_TLS_KEY": "/k.pem"}


async def address_of_client(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(str(scope["client"][0]))(scope, receive, send)


@pytest.mark.parametrize("listen", ["0.0.0.0:8443", "[::]:8443", "10.0.0.2:80", "[2001:db8::1]:443"])
def test_no_address_beyond_loopback_without_tls_or_a_proxy(listen: str) -> None:
    with pytest.raises(SettingsError, match="unencrypted"):
        Door.of({"SEGFLEET_LISTEN": listen})
    assert Door.of({"SEGFLEET_LISTEN": listen, **TLS}) is not None
    assert Door.of({"SEGFLEET_LISTEN": listen, "SEGFLEET_PROXY": "10.0.0.5"}) is not None


def test_nothing_is_opened_unasked() -> None:
    assert Door.of(TLS) is None
    assert Settings.from_environment({"SEGFLEET_HOME": "/x"}).door is None
    assert Door.of({"SEGFLEET_LISTEN": "127.0.0.1:9000"}) == Door("127.0.0.1", 9000, ("127.0.0.1",))


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"SEGFLEET_LISTEN": "8443"}, "no address"),
        ({"SEGFLEET_LISTEN": "fleet:8443"}, "no address"),
        ({"SEGFLEET_LISTEN": "0.0.0.0:"}, "no port"),
        ({"SEGFLEET_LISTEN": "0.0.0.0:65536"}, "no port"),
        ({"SEGFLEET_LISTEN": "0.0.0.0:1", "SEGFLEET_TLS_CERT": "/c"}, "needs both"),
        ({"SEGFLEET_LISTEN": "0.0.0.0:1", "SEGFLEET_PROXY": "*"}, "no address of a proxy"),
    ],
)
def test_odd_doors_are_named(env: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Door.of(env)


def test_the_names_are_those_that_clients_write() -> None:
    env = {"SEGFLEET_LISTEN": "[2001:db8::1]:443", "SEGFLEET_HOST_NAMES": "a.example, b.example,", **TLS}
    door = Door.of(env)
    assert door is not None
    assert door.names == ("[2001:db8::1]", "a.example", "b.example")


def serve(door: Door, **request: Any) -> str:
    with opened(address_of_client, door, log_config=None) as port:
        scheme = "http" if door.tls_cert is None else "https"
        transport = httpx.HTTPTransport(retries=3, verify=request.pop("verify", True))
        with httpx.Client(transport=transport, trust_env=False) as http:
            return http.get(f"{scheme}://127.0.0.1:{port}/", **request).text


def test_only_the_proxys_word_on_an_address_is_believed() -> None:
    headers = {"X-Forwarded-For": "192.0.2.7"}
    assert serve(Door("127.0.0.1", 0), headers=headers) == "127.0.0.1"
    assert serve(Door("127.0.0.1", 0, proxy="10.0.0.5"), headers=headers) == "127.0.0.1"
    assert serve(Door("127.0.0.1", 0, proxy="127.0.0.1"), headers=headers) == "192.0.2.7"


def test_tls_is_spoken_and_a_bad_certificate_named(tmp_path: Path) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    with pytest.raises(SettingsError, match="cannot be used"), opened(address_of_client, Door("::1", 0, (), cert, key)):
        pass
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    files = ["-subj", "/CN=t", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([openssl, *words, *files], check=True, capture_output=True)
    verify = ssl.create_default_context(cafile=cert)
    assert serve(Door("127.0.0.1", 0, (), cert, key), verify=verify) == "127.0.0.1"
    assert (
        serve(Door("127.0.0.1", 0, (), cert, key), verify=authorities({"SEGFLEET_CA_FILE": str(cert)})) == "127.0.0.1"
    )
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        serve(Door("127.0.0.1", 0, (), cert, key), verify=authorities({}))


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", ASKED, ASKED + b"GET / HTTP/1.1\r\nHost:"])
def test_who_does_not_end_the_headers_is_hung_up_on(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_TIMEOUT_S", 0.2)
    options: dict[str, Any] = {"log_config": None, "http": ImpatientProtocol, "timeout_keep_alive": 1}
    with opened(address_of_client, Door("127.0.0.1", 0), **options) as port, ExitStack() as stack:
        http = stack.enter_context(httpx.Client(transport=httpx.HTTPTransport(retries=3), trust_env=False))
        assert http.get(f"http://127.0.0.1:{port}/").is_success
        line = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        line.sendall(said)
        heard = b""
        while data := line.recv(4096):
            heard += data
        assert heard.endswith(b"127.0.0.1" if said.startswith(ASKED) else b"")
        assert heard.count(b"200 OK") == said.startswith(ASKED)


def test_who_asks_in_time_keeps_the_connection() -> None:
    options: dict[str, Any] = {"log_config": None, "http": ImpatientProtocol}
    with opened(address_of_client, Door("127.0.0.1", 0), **options) as port:
        transport = httpx.HTTPTransport(retries=3, limits=httpx.Limits(max_connections=1))
        with httpx.Client(transport=transport, trust_env=False) as http:
            streams = [http.get(f"http://127.0.0.1:{port}/").extensions["network_stream"] for _ in range(3)]
    assert len({id(stream) for stream in streams}) == 1


def test_without_a_door_nothing_listens() -> None:
    with opened(address_of_client, None) as port:
        assert port is None
