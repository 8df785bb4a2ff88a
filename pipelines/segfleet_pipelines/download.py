"""From the published files of a dataset to the folder that `prepare` reads."""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segfleet.errors import DataError
from segfleet_pipelines.extract import Extracted, extract, read_mark
from segfleet_pipelines.fetch import Fetcher, Wanted
from segfleet_pipelines.part_file import (
    ALWAYS,
    algorithms_of,
    hash_file,
    mismatches,
    read_record,
    record_path,
    write_record,
)
from segfleet_pipelines.public_hosts import open_client
from segfleet_pipelines.raw_files import LOGIN_STEPS, RAW_FILES, RawFile


class Reporter(Protocol):
    """Told what happens."""

    def moved(self, what: str, done: int, total: int | None) -> None:
        """So many bytes of a piece of work are done; total None: nobody knows how many there are."""
        ...

    def warn(self, message: str) -> None:
        """Something went wrong that will be tried again."""
        ...


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one published file.

    Attributes:
        file: Its path.
        sha256: Of its bytes.
        bytes: Its size; None: it was unpacked earlier and is not there any more.
        checked: The published digests that it fits; none: no digest is publicly known.
        url: Where it came from now; None: it was there.
        unpacked: The folder made of it; None: it is read as it is.
    """

    file: str
    sha256: str
    bytes: int | None
    checked: tuple[str, ...]
    url: str | None
    unpacked: str | None


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """What a folder of raw data now holds, and the command to run next."""

    dataset: str
    raw: str
    files: tuple[FileReport, ...]
    next: str


def download(
    dataset: str,
    raw: Path,
    reporter: Reporter,
    *,
    mirror: str | None = None,
    discard_archives: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> DownloadReport:
    """Get, check and unpack what is missing in a folder of raw data; what is there and whole is left alone.

    Args:
        dataset: A key of `RAW_FILES`.
        raw: The folder; made if it does not exist.
        reporter: Told what happens.
        mirror: Base URL that has all files under their names, instead of the public places.
        discard_archives: Remove each archive when it is unpacked.
        sleep: Waits for so many seconds between two tries.

    Raises:
        DataError: a file cannot be had without login or at all, is not the published one, or cannot be unpacked.
    """
    done = []
    with _locked(raw), open_client(mirror) as http:
        for file in RAW_FILES[dataset]:
            urls = file.urls if mirror is None else (f"{mirror.rstrip('/')}/{file.name}",)
            if not urls and not (raw / file.name).exists():
                raise DataError(LOGIN_STEPS[dataset].format(raw=raw))
            fetcher = Fetcher(http, _told(reporter, f"downloading {file.name}"), reporter.warn, sleep)
            done.append(_provide(file, raw, urls, fetcher, reporter, discard_archives))
    out = shlex.quote(f"shards/{dataset}")
    return DownloadReport(
        dataset, str(raw), tuple(done), f"segfleet prepare {dataset} --raw {shlex.quote(str(raw))} --out {out}"
    )


def _provide(
    file: RawFile, raw: Path, urls: Sequence[str], fetcher: Fetcher, reporter: Reporter, discard: bool
) -> FileReport:
    path = raw / file.name
    url = unpacked = None
    if earlier := _unpacked(file, raw):
        sha256 = earlier.sha256
    elif path.exists():
        sha256 = _check_present(path, file, _told(reporter, f"checking {file.name}"))
    else:
        got = fetcher.fetch(Wanted(path, urls, file.digests, file.size, unpacks=file.unpack is not None))
        sha256, url = got.sha256, got.url
    size = path.stat().st_size if path.exists() else None
    if file.unpack:
        unpacked = raw / file.unpack.target
        if not earlier:
            extract(path, sha256, file.unpack.inside, unpacked, _told(reporter, f"unpacking {file.name}"))
        if discard:
            path.unlink(missing_ok=True)
            record_path(path).unlink(missing_ok=True)
    return FileReport(str(path), sha256, size, file.digests, url, None if unpacked is None else str(unpacked))


def _unpacked(file: RawFile, raw: Path) -> Extracted | None:
    """How the file was unpacked earlier.

    Raises:
        DataError: its folder is there but was not made of it.
    """
    if file.unpack is None or not (folder := raw / file.unpack.target).exists():
        return None
    mark = read_mark(folder)
    if mark is None or mark.archive != file.name:
        raise DataError(
            f"{folder} exists, but was not unpacked from {file.name} by this command, so nobody knows whether it is "
            "whole; use it as it is, or move it away and run this command again"
        )
    return mark


def _check_present(path: Path, file: RawFile, report: Callable[[int, int | None], None]) -> str:
    """The SHA-256 of a file that is there, downloaded earlier or put there by the user.

    Raises:
        DataError: it is not the published file, or nothing tells.
    """
    found = hash_file(path, algorithms_of(file.digests), report)
    recorded = read_record(path)
    known = (*file.digests, *([f"{ALWAYS}:{recorded}"] if recorded else []))
    if not known:
        raise DataError(
            f"{path} exists, and neither a published nor a recorded digest tells whether it is whole; remove it"
        )
    if wrong := mismatches(known, found):
        raise DataError(f"{path} is not the expected file: {', '.join(wrong)}; remove it and run this command again")
    if recorded is None:
        write_record(path, found[ALWAYS])
    return found[ALWAYS]


def _told(reporter: Reporter, what: str) -> Callable[[int, int | None], None]:
    return lambda done, total: reporter.moved(what, done, total)


@contextmanager
def _locked(raw: Path) -> Iterator[None]:
    """Nobody else downloads to the folder.

    Raises:
        DataError: somebody does, or the folder cannot be made.
    """
    try:
        raw.mkdir(parents=True, exist_ok=True)
        lock = os.open(raw, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{raw} cannot be written: {error.strerror}; choose another folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(f"another download to {raw} is under way; wait for it to end") from error
    finally:
        os.close(lock)
