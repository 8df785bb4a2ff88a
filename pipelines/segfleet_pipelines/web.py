"""Files of a web server, for reading only.

A spec names the address, so it may lead nowhere but to public hosts, or to those that the operator lists: redirects are
not followed, and the environment's proxies, which would look the host up themselves, are not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx

from segfleet.errors import DataError, FileMissingError
from segfleet.public_hosts import PublicTransport
from segfleet.spec.location import Location
from segfleet_pipelines.remote import Stream
from segfleet_pipelines.retrying import TransientError

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PASSING = frozenset({408, 425, 429})


class WebFiles:
    """What lies below an http(s) address; one try of each operation."""

    def __init__(self, location: Location, private_hosts: frozenset[str], *, timeout: httpx.Timeout = _TIMEOUT) -> None:
        """Prepare; nothing is asked yet.

        Args:
            location: http:// or https://.
            private_hosts: host or host:port of servers that may be in a private network.
            timeout: To connect, and of a silence while reading, seconds.

        Raises:
            DataError: no address that a web client understands, such as one of an impossible host.
        """
        self._address, self._timeout = str(location), timeout
        try:
            url = httpx.URL(self._address)
            host = url.host
        except (httpx.InvalidURL, UnicodeError) as error:
            raise DataError(f"not a location: no {location.scheme}:// address; {error}") from None
        port = url.port or _DEFAULT_PORTS[url.scheme]
        name = f"[{host}]" if ":" in host else host
        self._way_out = f"if it is meant, the operator lists {name}:{port} in SEGFLEET_DATA_HOSTS"
        self._exempt = None if private_hosts.isdisjoint({name, host, f"{name}:{port}"}) else (host, port)

    def size(self, name: str) -> int:
        """See `segfleet_pipelines.remote.Files`."""
        with self._request("HEAD", name, {}) as answer:
            size = _length(answer)
        if size is None:
            raise DataError(f"{name!r} of {self._address}: the server does not say how long it is")
        return size

    @contextmanager
    def stream(self, name: str, start: int, version: str | None) -> Iterator[Stream]:
        """See `segfleet_pipelines.remote.Files`."""
        # Without the server's word that it is the same file still, a second half could be another one's.
        resume = {"Range": f"bytes={start}-", "If-Range": version} if start and version else {}
        with self._request("GET", name, resume) as answer:
            begin, size = 0, _length(answer)
            if answer.status_code == httpx.codes.PARTIAL_CONTENT:
                begin, size = self._resumed(name, answer, start)
            tag = answer.headers.get("etag", "")
            strong = tag if tag and not tag.startswith("W/") else None
            yield Stream(begin, size, strong, self._chunks(answer))

    def upload(self, source: Path, name: str) -> None:
        """Refused: a web server is for reading.

        Raises:
            DataError: always.
        """
        raise DataError(f"{name!r} ({source}) cannot be written to {self._address}; write to a folder, s3:// or gs://")

    def names(self) -> list[str]:
        """Refused: web servers do not list their files in one common way.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self._address} cannot be listed; the manifest says what a dataset on a web server holds")

    @contextmanager
    def _request(self, method: str, name: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        # A client for each file: nothing to share by mistake with a forked process.
        transport = PublicTransport(self._exempt, proxies=False, way_out=self._way_out)
        with httpx.Client(transport=transport, timeout=self._timeout, trust_env=False) as client:
            request = client.build_request(
                method, f"{self._address}/{quote(name)}", headers={"Accept-Encoding": "identity", **headers}
            )
            try:
                answer = client.send(request, stream=True, follow_redirects=False)
            except httpx.TransportError as error:
                raise TransientError(_reason(error)) from error
            try:
                self._judge(name, answer)
                yield answer
            finally:
                answer.close()

    def _judge(self, name: str, answer: httpx.Response) -> None:
        status = answer.status_code
        if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
            raise FileMissingError(name, self._address)
        if status >= 500 or status in _PASSING:
            raise TransientError(f"the server answers {status} {answer.reason_phrase}")
        if 300 <= status < 400:
            raise DataError(
                f"{name!r} of {self._address}: the server sends us elsewhere ({status}), and redirects are "
                "not followed; use the final address"
            )
        if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise DataError(
                f"{name!r} of {self._address}: the server answers {status} {answer.reason_phrase}; check the address"
            )
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise DataError(f"{name!r} of {self._address}: the server sends it compressed; serve the bytes as they are")

    def _resumed(self, name: str, answer: httpx.Response, start: int) -> tuple[int, int | None]:
        match = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", answer.headers.get("content-range", ""))
        if match is None or int(match[1]) != start:
            raise DataError(f"{name!r} of {self._address}: the server answers with another part than was asked for")
        return start, None if match[2] == "*" else int(match[2])

    @staticmethod
    def _chunks(answer: httpx.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_raw()
        except httpx.TransportError as error:
            raise TransientError(_reason(error)) from error


def _length(answer: httpx.Response) -> int | None:
    text = answer.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"the server is silent ({type(error).__name__})"
    return str(error) or type(error).__name__
