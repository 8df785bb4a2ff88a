"""A file on its way: `NAME.part` and what is needed to go on with it after any interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from segfleet.errors import DataError

ALWAYS = "sha256"
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """Which bytes a part is the beginning of.

    Attributes:
        url: Where they are asked for.
        validator: ETag or Last-Modified that a server compares before it goes on; None: it cannot.
        total: Bytes of the whole file; None: the server did not say.
    """

    url: str
    validator: str | None
    total: int | None


class PartFile:
    """The first bytes of a file, their digests, and their origin.

    The origin is on disk before the first byte is, and a part that changes its origin is emptied before. So the bytes
    that a killed process leaves always are a beginning of what the origin names.

    Args:
        target: The file's final name.
        algorithms: Digests to keep besides SHA-256, names of hashlib.

    Raises:
        DataError: the place cannot be written.
    """

    def __init__(self, target: Path, algorithms: Iterable[str] = ()) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._origin_path = target.with_name(f"{target.name}.part.json")
        self._algorithms = (ALWAYS, *algorithms)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}; choose another place") from error
        self.origin = self._load_origin()
        self._hashes = _new_hashes(self._algorithms)
        self.size = 0
        while self.origin is not None and (chunk := os.read(self._handle, _CHUNK)):
            self._count(chunk)

    def restart(self, origin: Origin | None) -> None:
        """Forget every byte; what comes next is of this origin."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self._hashes, self.size, self.origin = _new_hashes(self._algorithms), 0, origin
        if origin is None:
            self._origin_path.unlink(missing_ok=True)
            return
        fresh = self._origin_path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(origin)), encoding="utf-8")
        fresh.replace(self._origin_path)

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._handle, view) :]
        self._count(chunk)

    def digests(self) -> dict[str, str]:
        """Hex digests of the bytes so far, by algorithm."""
        return {name: value.hexdigest() for name, value in self._hashes.items()}

    def finish(self) -> None:
        """Give the file its final name, durably, with its SHA-256 beside it."""
        os.fsync(self._handle)
        write_record(self.target, self.digests()[ALWAYS])
        self.path.replace(self.target)
        self._origin_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the bytes and their origin."""
        self._origin_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what is there stays, except an empty part."""
        if self.size == 0:
            self.discard()
        os.close(self._handle)

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        for value in self._hashes.values():
            value.update(chunk)

    def _load_origin(self) -> Origin | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Origin(**json.loads(self._origin_path.read_text(encoding="utf-8")))
        return None


def hash_file(path: Path, algorithms: Iterable[str], report: Callable[[int, int], None]) -> dict[str, str]:
    """Hex digests of a file by algorithm, SHA-256 always among them.

    Args:
        path: The file.
        algorithms: Names of hashlib.
        report: Called with bytes read and bytes in all.

    Raises:
        DataError: it cannot be read.
    """
    hashes = _new_hashes((ALWAYS, *algorithms))
    done = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                for value in hashes.values():
                    value.update(chunk)
                report(done := done + len(chunk), total)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return {name: value.hexdigest() for name, value in hashes.items()}


def algorithms_of(digests: Iterable[str]) -> tuple[str, ...]:
    """The algorithms of `algorithm:hex` texts."""
    return tuple(digest.partition(":")[0] for digest in digests)


def mismatches(expected: Iterable[str], found: dict[str, str]) -> list[str]:
    """For people: which of the `algorithm:hex` texts do not fit, with both values."""
    pairs = [(algorithm, hexes) for algorithm, _, hexes in (digest.partition(":") for digest in expected)]
    return [
        f"{algorithm} is {found[algorithm]}, not {hexes}" for algorithm, hexes in pairs if found[algorithm] != hexes
    ]


def record_path(path: Path) -> Path:
    """Where the SHA-256 of a finished file is kept, in the form that `sha256sum --check` reads."""
    return path.with_name(f"{path.name}.sha256")


def write_record(path: Path, sha256: str) -> None:
    """Record that a file is whole."""
    record_path(path).write_text(f"{sha256}  {path.name}\n", encoding="utf-8")


def read_record(path: Path) -> str | None:
    """The recorded SHA-256 of a finished file; None: there is no record."""
    try:
        return record_path(path).read_text(encoding="utf-8").split(maxsplit=1)[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return None


def _new_hashes(algorithms: Iterable[str]) -> dict[str, hashlib._Hash]:
    return {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
