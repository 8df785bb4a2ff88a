"""What a training tells of itself, on disk until MLflow has it: points and files that outlive the process.

A folder on the storage that all workers share holds

    000002-5f0c1a7e.000000.jsonl   segments: one line an entry, each with its checksum, only ever appended to
    files/000002-5f0c1a7e-7/...    the files that entries name
    position.json                  how far MLflow has them, see `replay`

A writer's segments are its own: they begin with a number that is higher than every earlier writer's, so the order of
names is the order of replay, and whoever sees a higher number than its own knows that another has taken over.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SPOOL = "mlflow-spool"
SEGMENT_BYTES = 4 * 2**20
MOST_BYTES = 512 * 2**20
_FILES = "files"
_MOST_HELD = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing told.

    Attributes:
        step: Of the training.
        ms: When it was told, milliseconds since the epoch: a part of the point, so that a repeated one is the same.
        values: Points by their curves' names.
        file: Path below the spool's folder; empty if there is none.
        place: Folder of the run's artifacts that the file belongs into; empty for the topmost.
    """

    step: int
    ms: int
    values: Mapping[str, float]
    file: str = ""
    place: str = ""

    def to_line(self) -> bytes:
        """Checksum and JSON, with the line's end."""
        document = [self.step, self.ms, dict(self.values), self.file, self.place]
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    @classmethod
    def from_line(cls, line: bytes) -> Entry | None:
        """The entry; None: the line is not what was written."""
        checksum, _, text = line.rstrip(b"\n").partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            return None
        step, ms, values, file, place = json.loads(text)
        return cls(step, ms, values, file, place)


class Spool:
    """A writer's end; safe to use from several threads. To make one takes over from every earlier writer.

    The size is bounded: what would exceed `most_bytes` is dropped aloud, files from the half on. What cannot be written
    because the disk is full is tried again with the next entry.

    Args:
        folder: Of the job or trial; made if there is none.
        most_bytes: Of all that waits.
        segment_bytes: A segment that has grown to this is followed by another, so that it can be deleted.

    Attributes:
        name: Of the writer.
        dropped: Entries so far.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = max((_number(path.name) for path in segments(folder)), default=0) + 1
        self.name, self.dropped = f"{number:06d}-{uuid.uuid4().hex[:8]}", 0
        self._folder, self._most_bytes, self._segment_bytes = folder, most_bytes, segment_bytes
        self._lock, self._held, self._is_torn = threading.Lock(), deque[bytes](maxlen=_MOST_HELD), False
        self._segment = self._num_files = 0
        self._room = most_bytes - _size(folder)
        self._open()

    def append(self, entry: Entry) -> None:
        """Write an entry down; it survives this process, and after `sync` the machine."""
        line = entry.to_line()
        with self._lock:
            if self._has_room(len(line), 0):
                self._write(line)

    def append_file(self, step: int, ms: int, name: str, data: bytes, place: str) -> None:
        """Write a file down, to become an artifact of that name in that place."""
        with self._lock:
            if not self._has_room(len(data), self._most_bytes // 2):
                return
            self._num_files += 1
            path = self._folder / _FILES / f"{self.name}-{self._num_files}" / name
            try:
                path.parent.mkdir(parents=True)
                path.write_bytes(data)
            except OSError as error:
                self._drop(f"{name} cannot be kept for MLflow: {error.strerror or error}")
                return
            self._write(Entry(step, ms, {}, path.relative_to(self._folder).as_posix(), place).to_line())

    def sync(self) -> None:
        """Have all that was told on the disk: a checkpoint makes its steps final, they are not told again."""
        with self._lock:
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Append no more."""
        with self._lock:
            self._stream.close()

    def _open(self) -> None:
        path = self._folder / f"{self.name}.{self._segment:06d}.jsonl"
        self._stream, self._written = path.open("ab", buffering=0), 0

    def _write(self, line: bytes) -> None:
        self._held.append(line)
        # What a full disk has cut off is no entry: the next begins on a line of its own.
        data = (b"\n" if self._is_torn else b"") + b"".join(self._held)
        try:
            written = self._stream.write(data)
        except OSError as error:
            if len(self._held) == 1:
                print(f"segfleet: points for MLflow wait for room on the disk: {error.strerror or error}", flush=True)
            return
        if written < len(data):
            self._is_torn = True
            return
        self._held.clear()
        self._is_torn = False
        self._written += written
        self._room -= written
        if self._written >= self._segment_bytes:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._segment += 1
            self._open()

    def _has_room(self, size: int, reserve: int) -> bool:
        if self._room - size < reserve:
            self._room = self._most_bytes - _size(self._folder)
            if self._room - size < reserve:
                self._drop(f"{self._most_bytes - self._room} bytes wait for MLflow; what comes now is dropped")
                return False
        self._room -= size if reserve else 0
        return True

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped == 1:
            print(f"segfleet: {why}", flush=True)


def segments(folder: Path) -> list[Path]:
    """All segments in the order of replay."""
    return sorted(folder.glob("*.jsonl"))


def owner(segment: str) -> str:
    """Name of the writer whose segment it is."""
    return segment.partition(".")[0]


def read(folder: Path, segment: str, offset: int, most: int) -> tuple[list[Entry], str, int]:
    """Entries from a place on.

    Args:
        folder: Of the spool.
        segment: Name of the segment; the place may be one that is deleted.
        offset: Bytes into it.
        most: Points, before no further entry is added.

    Returns:
        The entries, and the place after them; none: there is nothing more yet.
    """
    for path in segments(folder):
        if path.name < segment:
            continue
        if path.name > segment:
            # The listing had this one: when the one before was read to its end, nothing was appended to it any more.
            segment, offset = path.name, 0
        entries, offset = _read_segment(path, offset, most)
        if entries:
            return entries, segment, offset
    return [], segment, offset


def forget(folder: Path, segment: str) -> None:
    """Delete the segments before this one, with the files of the writers before its own."""
    for path in segments(folder):
        if path.name < segment:
            path.unlink(missing_ok=True)
    for path in (folder / _FILES).glob("*"):
        if path.name < owner(segment):
            shutil.rmtree(path, ignore_errors=True)


def forget_file(folder: Path, file: str) -> None:
    """Delete an entry's file with the folder that holds it alone."""
    shutil.rmtree((folder / file).parent, ignore_errors=True)


def _read_segment(path: Path, offset: int, most: int) -> tuple[list[Entry], int]:
    """Whole lines only: the last may still be under way, or have been cut off by the writer's death."""
    entries: list[Entry] = []
    num_points = 0
    with path.open("rb") as stream:
        stream.seek(offset)
        while num_points < most and len(entries) < most and (line := stream.readline()).endswith(b"\n"):
            offset += len(line)
            entry = Entry.from_line(line)
            if entry is not None:
                entries.append(entry)
                num_points += len(entry.values)
            elif line != b"\n":
                print(f"segfleet: passed over a damaged line of {path}", flush=True)
    return entries, offset


def _number(name: str) -> int:
    digits = name.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue  # the writer has just deleted it
    return total
