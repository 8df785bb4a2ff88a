"""One file from the network: continued where it was cut, checked while it is written."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx

from segfleet.errors import DataError
from segfleet_pipelines.part_file import ALWAYS, Origin, PartFile, algorithms_of, mismatches

# A disk that is full to the brim harms others than us.
SPARE_BYTES = 256 * 1024 * 1024
_MAX_REDIRECTS = 5
_MAX_WAIT_S = 60.0
_BUSY = frozenset({408, 425, 429})
_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be had.

    Attributes:
        target: The file to make.
        urls: Where to ask, in this order.
        digests: `algorithm:hex`, all of which must fit.
        size: Bytes; None: whatever the server says.
        unpacks: Whether room for the unpacked content is needed as well.
    """

    target: Path
    urls: Sequence[str]
    digests: tuple[str, ...]
    size: int | None = None
    unpacks: bool = False


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was had: from where, with which SHA-256, and how many bytes."""

    url: str
    sha256: str
    bytes: int


class _RetryError(Exception):
    """The same request may succeed later.

    Args:
        message: Why.
        wait_s: What the server asked for, seconds.
    """

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _SourceError(Exception):
    """This address does not have the file; another one may."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches files.

    Attributes:
        http: Follows no redirects; decides which hosts may be asked.
        report: Called with bytes so far and bytes in all (None: unknown).
        warn: Called with what went wrong and when it is tried again, for people.
        sleep: Waits for so many seconds.
        tries: Failures in a row, without a byte more than ever before, after which an address is given up.
    """

    http: httpx.Client
    report: Callable[[int, int | None], None]
    warn: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    tries: int = 6

    def fetch(self, wanted: Wanted) -> Fetched:
        """Make the file, or what is missing of it.

        Raises:
            DataError: no address has it, it is not the right file, a host may not be asked, or the disk is too small.
        """
        problems = []
        for url in wanted.urls:
            try:
                with closing(PartFile(wanted.target, algorithms_of(wanted.digests))) as part:
                    return self._fetch_from(url, part, wanted)
            except _SourceError as error:
                problems.append(f"\n  - {url}: {error}")
            except OSError as error:
                raise DataError(f"{wanted.target} cannot be written: {error.strerror}; what was got is kept") from error
        raise DataError(
            f"{wanted.target.name} cannot be downloaded:{''.join(problems)}\n"
            f"try again later, name another place with --mirror, or get it otherwise and put it at {wanted.target}"
        )

    def _fetch_from(self, url: str, part: PartFile, wanted: Wanted) -> Fetched:
        failures, furthest = 0, part.size
        while True:
            try:
                self._transfer(url, part, wanted)
                break
            except (httpx.TransportError, _RetryError) as error:
                if part.size > furthest:
                    failures, furthest = 0, part.size
                failures += 1
                reason = str(error) or type(error).__name__
                if failures >= self.tries:
                    raise _SourceError(f"{reason}; given up after {failures} tries in a row") from error
                asked_s = error.wait_s if isinstance(error, _RetryError) else 0.0
                wait_s = min(_MAX_WAIT_S, max(asked_s, 2.0 ** (failures - 1)))
                self.warn(f"{url}: {reason}; next try in {wait_s:g} s")
                self.sleep(wait_s)
        digests = part.digests()
        if wrong := mismatches(wanted.digests, digests):
            part.discard()
            raise _SourceError(f"not the expected file: {', '.join(wrong)}; it was removed")
        part.finish()
        return Fetched(url, digests[ALWAYS], part.size)

    def _transfer(self, url: str, part: PartFile, wanted: Wanted) -> None:
        origin = part.origin if part.origin and part.origin.url == url else None
        if origin and part.size == origin.total:
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "segfleet"}
        validator = origin.validator if origin and 0 < part.size < (origin.total or sys.maxsize) else None
        if validator:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": validator}
        with closing(self._open(url, headers)) as response:
            if not (validator and _continues(response, part)):
                _begin(url, response, part)
            assert part.origin is not None
            total = part.origin.total
            _check_size(total, wanted)
            _check_room(part, total, wanted)
            # As the bytes come: what waited in memory for more would be lost when the connection is cut.
            for chunk in response.iter_raw():
                part.write(chunk)
                if wanted.size is not None and part.size > wanted.size:
                    _check_size(part.size, wanted)
                if total is None:
                    _check_room(part, part.size, wanted)
                self.report(part.size, total)
        if total is not None and part.size != total:
            raise _RetryError(f"the connection was cut after {part.size} of {total} bytes")

    def _open(self, url: str, headers: dict[str, str]) -> httpx.Response:
        try:
            target = httpx.URL(url)
            for _ in range(_MAX_REDIRECTS + 1):
                response = self.http.send(self.http.build_request("GET", target, headers=headers), stream=True)
                if response.next_request is None:
                    return response
                response.close()
                place = response.next_request.url
                if place.scheme not in ("https", target.scheme):
                    raise _SourceError(f"redirects to {place}, which is less safe; refused")
                target = place
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise _SourceError(str(error)) from error
        raise _SourceError(f"more than {_MAX_REDIRECTS} redirects")


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to a folder's file system."""
    return shutil.disk_usage(folder).free


def _continues(response: httpx.Response, part: PartFile) -> bool:
    """Whether the answer is the rest of a part; if it is another part of something, the part is emptied."""
    if response.status_code not in (206, 416):
        return False
    assert part.origin is not None
    span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    same = _validator(response) in (None, part.origin.validator)
    if same and span and int(span[1]) == part.size and span[2] in ("*", str(part.origin.total)):
        return True
    part.restart(None)
    raise _RetryError("the server has changed the file; starting again")


def _begin(url: str, response: httpx.Response, part: PartFile) -> None:
    """Empty the part for an answer that holds the whole file."""
    code = response.status_code
    if code >= 500 or code in _BUSY:
        wait = response.headers.get("Retry-After", "")
        raise _RetryError(f"the server answered {code}", float(wait) if wait.isdecimal() else 0.0)
    if code != 200:
        raise _SourceError(f"the server answered {code} {response.reason_phrase}")
    length = response.headers.get("Content-Length", "")
    part.restart(Origin(url, _validator(response), int(length) if length.isdecimal() else None))


def _validator(response: httpx.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the time of the last change."""
    etag: str = response.headers.get("ETag", "")
    changed: str | None = response.headers.get("Last-Modified")
    return etag if etag.startswith('"') else changed


def _check_size(size: int | None, wanted: Wanted) -> None:
    if None not in (size, wanted.size) and size != wanted.size:
        raise _SourceError(f"holds {size} bytes or more, but the file has {wanted.size}")


def _check_room(part: PartFile, total: int | None, wanted: Wanted) -> None:
    """Room for the rest and, at least as large as the archive, for what is in it."""
    size = total or wanted.size or 0
    needed = size - part.size + (size if wanted.unpacks else 0) + SPARE_BYTES
    free = free_bytes(wanted.target.parent)
    if needed > free:
        raise DataError(
            f"{wanted.target.parent} has {free >> 20} MiB free; {wanted.target.name} needs {needed >> 20} MiB"
            f"{' with its content' if wanted.unpacks else ''}; make room or choose another place"
        )
