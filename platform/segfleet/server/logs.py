"""A job's log as one stream of bytes: the logs of its attempts in order, each announced by a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MAX_CHUNK_BYTES = 1 << 20


def read_logs(folder: Path, attempt_ids: Sequence[str], offset: int, limit: int = MAX_CHUNK_BYTES) -> tuple[bytes, int]:
    """A piece of the stream.

    Args:
        folder: Where `ATTEMPT.log` lie; a missing one is empty.
        attempt_ids: In order of their start.
        offset: First byte wanted.
        limit: Most bytes to return.

    Returns:
        The bytes, and the offset of the byte after them; no bytes: there is nothing more yet.
    """
    pieces: list[bytes] = []
    start, room = 0, limit
    for position, attempt_id in enumerate(attempt_ids):
        # The blank line is unconditional: it may not depend on how far the log before has grown.
        title = f"{chr(10) if position else ''}===== {attempt_id} =====\n".encode()
        path = folder / f"{attempt_id}.log"
        size = path.stat().st_size if path.is_file() else 0
        piece = title[max(0, offset - start) :][:room]
        body_from = max(0, offset - start - len(title))
        if room > len(piece) and body_from < size:
            with path.open("rb") as file:
                file.seek(body_from)
                piece += file.read(min(room - len(piece), size - body_from))
        pieces.append(piece)
        room -= len(piece)
        start += len(title) + size
    data = b"".join(pieces)
    return data, min(offset, start) + len(data)
