"""Walk a tar file's headers to its very end, and forgive nothing.

CPython's tarfile takes any bad header after the first for the end of the archive, follows negative sizes backwards and
has no bound on the length of a name. Of 9 kinds of damage to a shard, WebDataset, which reads through it, hides 7.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segfleet.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
_END_MARK = 2 * _BLOCK
_MAX_EXTENSION = 64 * 1024  # bytes of a long name or of PAX records; a real one has some hundred
_CHUNK = 1024 * 1024
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """An ordinary file in a tar file.

    Attributes:
        name: As the tar file has it.
        offset: First byte of its content in the tar file.
        size: Bytes of the content.
    """

    name: str
    offset: int
    size: int


def walk_tar(path: Path) -> list[TarMember]:
    """All members of an uncompressed tar file, in order.

    Raises:
        DataError: unreadable, cut short, a damaged header, bytes behind the end, or a member that is not an ordinary
            file; names the file and the place.
    """
    try:
        with path.open("rb") as file:
            return _Walk(file, path.stat().st_size).members()
    except OSError as error:
        raise DataError(f"shard {path.name!r} cannot be read: {error.strerror}") from error
    except (DataError, tarfile.HeaderError, ValueError) as error:
        raise DataError(f"shard {path.name!r} is not a sound tar file: {error}") from error


class _Walk:
    """One walk over one open file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._position = 0

    def members(self) -> list[TarMember]:
        found: list[TarMember] = []
        name: str | None = None
        size: int | None = None
        while (header := self._header()) is not None:
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
                content = self._extension(header)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    name = _text(content.rstrip(b"\0"))
                elif header.type == tarfile.XHDTYPE:
                    records = _pax_records(content)
                    name = records.get("path", name)
                    size = int(records["size"]) if "size" in records else size
                continue
            name, size = name or header.name, header.size if size is None else size
            if header.type not in _FILES:
                raise DataError(f"member {name!r} is {_KINDS.get(header.type, 'of an unknown kind')}")
            found.append(TarMember(name, self._position, size))
            self._skip(size, f"member {name!r}")
            name = size = None
        return found

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end mark, behind which is nothing but zeros."""
        self._file.seek(self._position)
        block = self._file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise DataError(f"it ends at byte {self._position} without an end mark, so it is cut short")
        if not any(block):
            self._check_end()
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"damaged header at byte {self._position} ({error})") from error
        self._position += _BLOCK
        return header

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if not 0 <= header.size <= _MAX_EXTENSION:
            raise DataError(f"a name or record of {header.size} bytes at byte {self._position}")
        content = self._file.read(header.size)
        self._skip(header.size, "a long name")
        return content

    def _skip(self, size: int, what: str) -> None:
        if size < 0 or self._position + size > self._size:
            raise DataError(f"{what} of {size} bytes leads beyond the end, so the file is cut short or damaged")
        self._position += -(-size // _BLOCK) * _BLOCK

    def _check_end(self) -> None:
        self._file.seek(self._position)
        if self._size - self._position < _END_MARK:
            raise DataError(f"half an end mark at byte {self._position}, so it is cut short")
        while chunk := self._file.read(_CHUNK):
            if any(chunk):
                raise DataError(f"an end mark at byte {self._position} with more data behind it")


def _pax_records(content: bytes) -> dict[str, str]:
    """Fields of an extended header: `LENGTH KEY=VALUE\\n`, the length counting the whole record."""
    records: dict[str, str] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits)
        record, content = content[len(digits) + 1 : length], content[length:]
        key, separator, value = record.partition(b"=")
        if length <= len(digits) or not separator or not value.endswith(b"\n"):
            raise DataError("a damaged extended header")
        records[_text(key)] = _text(value[:-1])
    return records


def _text(data: bytes) -> str:
    return data.decode("utf-8")
