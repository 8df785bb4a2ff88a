"""What a training told stays on disk, in order, whatever happens to the writer, the disk or a line."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segfleet_jobs.spool import Entry, Spool, forget, owner, read, segments

MOST = 1000


@pytest.fixture(autouse=True)
def all_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[Spool] = []
    begin = Spool._open

    def open_and_note(spool: Spool) -> None:
        begin(spool)
        opened.append(spool)

    monkeypatch.setattr(Spool, "_open", open_and_note)
    yield
    for spool in opened:
        spool.close()


def entry(step: int, **values: float) -> Entry:
    return Entry(step, 1_700_000_000_000 + step, values or {"loss": 1 / step})


def everything(folder: Path) -> list[Entry]:
    """As a reader finds it that begins at the beginning."""
    found, segment, offset = [], "", 0
    while True:
        entries, segment, offset = read(folder, segment, offset, 7)
        if not entries:
            return found
        found += entries


def fill(folder: Path, begin: int, end: int, **options: int) -> Spool:
    spool = Spool(folder, **options)
    for step in range(begin, end):
        spool.append(entry(step))
    return spool


def test_what_was_told_is_read_back_in_order_over_all_writers_and_segments(tmp_path: Path) -> None:
    fill(tmp_path, 1, 50, segment_bytes=200)
    fill(tmp_path, 50, 60)
    assert len(segments(tmp_path)) > 5
    assert everything(tmp_path) == [entry(step) for step in range(1, 60)]


def test_a_reader_that_is_at_the_end_gets_what_comes_then(tmp_path: Path) -> None:
    spool = fill(tmp_path, 1, 4)
    entries, segment, offset = read(tmp_path, "", 0, MOST)
    assert read(tmp_path, segment, offset, MOST) == ([], segment, offset)
    spool.append(entry(4))
    after, *_ = read(tmp_path, segment, offset, MOST)
    assert [*entries, *after] == [entry(step) for step in range(1, 5)]


def test_a_batch_ends_at_its_number_of_points(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 6):
        spool.append(entry(step, a=1.0, b=2.0))
    entries, segment, offset = read(tmp_path, "", 0, 4)
    assert [found.step for found in entries] == [1, 2]
    assert [found.step for found in read(tmp_path, segment, offset, 4)[0]] == [3, 4]


@pytest.mark.parametrize("seed", range(12))
def test_a_writer_that_dies_anywhere_in_a_line_costs_that_line_alone(seed: int, tmp_path: Path) -> None:
    fill(tmp_path, 1, 6)
    (segment,) = segments(tmp_path)
    cut = random.Random(seed).randrange(segment.stat().st_size)
    whole = segment.read_bytes()[:cut]
    segment.write_bytes(whole)
    assert everything(tmp_path) == [entry(step) for step in range(1, whole.count(b"\n") + 1)]
    fill(tmp_path, 10, 12)
    assert everything(tmp_path) == [entry(step) for step in (*range(1, whole.count(b"\n") + 1), 10, 11)]


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_line_is_passed_over_aloud(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, 1, 6)
    (segment,) = segments(tmp_path)
    lines, rng = segment.read_bytes().splitlines(keepends=True), random.Random(seed)
    hit = rng.randrange(5)
    at = rng.randrange(len(lines[hit]) - 1)
    lines[hit] = lines[hit][:at] + bytes([lines[hit][at] ^ 4]) + lines[hit][at + 1 :]
    segment.write_bytes(b"".join(lines))
    assert everything(tmp_path) == [entry(step) for step in range(1, 6) if step != hit + 1]
    assert "damaged line" in capsys.readouterr().out


def test_a_new_writer_comes_after_all_others_and_theirs_can_be_forgotten(tmp_path: Path) -> None:
    first = fill(tmp_path, 1, 3)
    first.append_file(3, 0, "sheet.png", b"png", "predictions")
    second = fill(tmp_path, 4, 5)
    assert second.name > first.name
    second.append_file(5, 0, "sheet.png", b"png2", "predictions")
    forget(tmp_path, segments(tmp_path)[-1].name)
    assert [owner(path.name) for path in segments(tmp_path)] == [second.name]
    assert [path.read_bytes() for path in tmp_path.glob("files/*/sheet.png")] == [b"png2"]
    assert Spool(tmp_path).name > second.name


def test_a_file_is_kept_apart_from_others_of_its_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2):
        spool.append_file(step, 5, "confusion.json", str(step).encode(), "")
    found = everything(tmp_path)
    assert [(told.step, (tmp_path / told.file).read_bytes(), told.place) for told in found] == [
        (1, b"1", ""),
        (2, b"2", ""),
    ]


def test_a_full_spool_drops_files_at_the_half_and_then_points_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(tmp_path, most_bytes=2000)
    spool.append_file(1, 0, "a.png", b"x" * 900, "")
    spool.append_file(2, 0, "b.png", b"x" * 900, "")
    assert spool.dropped == 1
    for step in range(1, 40):
        spool.append(entry(step))
    assert spool.dropped > 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 2000
    kept = [told for told in everything(tmp_path) if not told.file]
    assert kept == [entry(step) for step in range(1, len(kept) + 1)]
    assert capsys.readouterr().out.count("dropped") == 1
    for path in tmp_path.glob("files/*/*"):
        path.unlink()
    spool.append(entry(50))
    assert everything(tmp_path)[-1] == entry(50)


class FullDisk(io.RawIOBase):
    """Takes `room` bytes, then none until there is room again."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream, self.room = stream, room

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.stream.write(bytes(data)[: self.room])
        self.room -= taken
        return int(taken)


@pytest.mark.parametrize("room", range(0, 200, 23))
def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(room: int, tmp_path: Path) -> None:
    spool = fill(tmp_path, 1, 3)
    whole, disk = spool._stream, FullDisk(spool._stream, room)
    spool._stream = disk  # type: ignore[assignment]
    for step in range(3, 9):
        spool.append(entry(step))
    spool._stream = whole
    spool.append(entry(9))
    found = everything(tmp_path)
    assert {told.step for told in found} == set(range(1, 10))
    assert all(told == entry(told.step) for told in found), "what was written twice is the same"
