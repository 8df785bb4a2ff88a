"""Tar archives of model versions: written by the service, unpacked without trust by the client."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from segfleet.errors import DataError, ModelError

MAX_MEMBERS = 10_000


def digest_header(sha256: bytes) -> str:
    """The value of a Repr-Digest header (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def pack(folder: Path, out: IO[bytes]) -> str:
    """Write the regular files below a folder as an uncompressed tar.

    Returns:
        The Repr-Digest header value of what was written.
    """
    tee = _Hashing(out)
    with tarfile.open(fileobj=tee, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)
    return digest_header(tee.sha256.digest())


def unpack(chunks: Iterable[bytes], out: Path, digest: str) -> Path:
    """Unpack a tar stream into a new folder, which appears only when all of it is there and its digest is right.

    Args:
        chunks: The archive, piece by piece.
        out: The folder to make.
        digest: Repr-Digest header value the archive must have.

    Raises:
        ModelError: `out` exists.
        DataError: the disk is full, the archive is cut, changed, or holds anything but plain files with plain relative
            names.
    """
    if out.exists() or out.is_symlink():
        raise ModelError(f"{str(out)!r} exists already; choose another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            _extract(chunks, staging, digest)
            staging.chmod(0o755)
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{str(out)!r} cannot be written: {error.strerror or error}") from error
    return out


def _extract(chunks: Iterable[bytes], folder: Path, digest: str) -> None:
    stream = _Chunks(iter(chunks))
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar, start=1):
                if count > MAX_MEMBERS:
                    raise DataError(f"the archive holds more than {MAX_MEMBERS} files; it is refused")
                _write_member(tar, member, folder)
        stream.drain()
    except tarfile.TarError as error:
        raise DataError(f"the archive is damaged ({error}); pull again") from error
    # tarfile takes a broken header for the end of the archive; only the digest proves that all has come.
    if digest_header(stream.sha256.digest()) != digest:
        raise DataError("the archive was cut or changed on its way (digest differs); pull again")


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(member.name)
    parts_ok = name.parts and not name.is_absolute() and not {"..", "."} & set(name.parts)
    if not member.isfile() or not parts_ok or "\\" in member.name or "\0" in member.name:
        raise DataError(f"the archive holds {member.name[:80]!r}, which is no plain file below it; it is refused")
    source = tar.extractfile(member)
    assert source is not None, "regular files have contents"
    target = folder.joinpath(*name.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


class _Hashing:
    """Passes writes on and hashes them."""

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner, self.sha256 = inner, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.inner.write(data)


class _Chunks:
    """Reads an iterator of bytes as a file and hashes what passes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest, self.sha256 = chunks, b"", hashlib.sha256()

    def read(self, size: int) -> bytes:
        while len(self.rest) < size:
            chunk = next(self.chunks, None)
            if chunk is None:
                break
            self.sha256.update(chunk)
            self.rest += chunk
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def drain(self) -> None:
        """Read to the end, so that the hash covers all of it."""
        while self.read(1 << 20):
            pass
