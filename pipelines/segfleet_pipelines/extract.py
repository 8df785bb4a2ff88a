"""Archives of strangers: what is taken out of a zip or tar file becomes one new folder, or nothing does."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.archive_members import Member, open_members, safe_parts
from segfleet_pipelines.fetch import SPARE_BYTES, free_bytes

# In every unpacked folder, what came from where. A folder without it was not made by `extract`.
MARK = ".segfleet-unpacked.json"
_CHUNK = 1024 * 1024
# What zipfile, tarfile, gzip and zlib raise for archives that are damaged or not what their name says.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may become.

    Attributes:
        members: Files and folders in it.
        bytes: Unpacked.
        ratio: Unpacked bytes for each byte of the archive, beyond `ratio_from` bytes.
        ratio_from: Bytes that every archive may unpack.
    """

    members: int = 200_000
    bytes: int = 64 * 1024**3
    ratio: int = 100
    ratio_from: int = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was unpacked: from an archive of which SHA-256, how many files and bytes."""

    archive: str
    sha256: str
    files: int
    bytes: int


def extract(
    archive: Path,
    sha256: str,
    inside: str,
    target: Path,
    report: Callable[[int, int | None], None],
    limits: Limits | None = None,
) -> Extracted:
    """Unpack one folder of a .zip, .tar, .tar.gz or .tgz file under its final name, whole or not at all.

    Only plain files and folders come out, with this process's permissions. A member that is something else, leads out
    of the folder, or has the name of another (also where case does not count) refuses the whole archive.

    Args:
        archive: The file.
        sha256: Its digest, for the mark.
        inside: Folder in the archive.
        target: Folder to make; the caller sees to it that nobody else makes it at the same time.
        report: Called with the bytes unpacked so far, and None.
        limits: None: the usual ones.

    Raises:
        DataError: the archive is damaged, dangerous or too large, `target` exists, or cannot be written.
    """
    with _explained(archive), _fresh_folder(target) as work:
        writer = _Writer(work, archive.stat().st_size, limits or Limits(), report)
        with open_members(archive) as members:
            for member in members:
                writer.take(member, tuple(inside.split("/")))
        if not writer.files:
            raise DataError(f"no file is in its folder {inside!r}; it is not the archive that was expected")
        done = Extracted(archive.name, sha256, writer.files, writer.bytes)
        (work / MARK).write_text(json.dumps(asdict(done)), encoding="utf-8")
        # Thousands of files: one call for all of them, so that the name never stands for less than the whole.
        os.sync()
        work.rename(target)
    return done


def read_mark(target: Path) -> Extracted | None:
    """What an unpacked folder was made of; None: `extract` did not make it."""
    try:
        return Extracted(**json.loads((target / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(slots=True)
class _Writer:
    """Writes members below a folder that nobody else writes to.

    Attributes:
        archive_bytes: Size of the archive.
        declared: Bytes of the members so far, by the archive's own words, also of those that are not wanted.
        names: Path in one spelling of case and accents -> path as it is, and whether it is a folder.
    """

    work: Path
    archive_bytes: int
    limits: Limits
    report: Callable[[int, int | None], None]
    members: int = 0
    declared: int = 0
    files: int = 0
    bytes: int = 0
    names: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def take(self, member: Member, inside: tuple[str, ...]) -> None:
        """Write a member if it lies inside the wanted folder; name and size are checked of every one."""
        parts = safe_parts(member.name)
        self._check_limits(member)
        if parts[: len(inside)] != inside:
            return
        if member.kind not in ("file", "folder"):
            raise DataError(f"member {member.name!r} is {member.kind}; only files and folders are unpacked")
        member.check(self.work)
        parts = parts[len(inside) :]
        if member.kind == "folder":
            self._make_folders(parts)
        else:
            self._make_folders(parts[:-1])
            self._claim(parts, is_folder=False)
            self._write(member, self._contained(parts))
            self.files += 1

    def _check_limits(self, member: Member) -> None:
        self.members += 1
        self.declared += member.size
        if member.size < 0:
            raise DataError(f"member {member.name!r} has a size below zero")
        if self.members > self.limits.members:
            raise DataError(f"it has more than {self.limits.members} members")
        if self.declared > self.limits.bytes:
            raise DataError(f"it unpacks to more than {self.limits.bytes >> 20} MiB")
        if self.declared > max(self.limits.ratio_from, self.limits.ratio * self.archive_bytes):
            raise DataError(f"it unpacks to more than {self.limits.ratio} times its own size")

    def _make_folders(self, parts: tuple[str, ...]) -> None:
        for depth in range(1, len(parts) + 1):
            if self._claim(parts[:depth], is_folder=True):
                self._contained(parts[:depth]).mkdir()

    def _contained(self, parts: tuple[str, ...]) -> Path:
        """The path below the folder, if that is where the file system would put it."""
        path = self.work.joinpath(*parts)
        if path.parent.resolve() != self.work.resolve().joinpath(*parts[:-1]):
            raise DataError(f"{'/'.join(parts)!r} leads out of the folder")
        return path

    def _claim(self, parts: tuple[str, ...], *, is_folder: bool) -> bool:
        """Whether the name is new. The same folder may come again, nothing else may."""
        path = "/".join(parts)
        key = unicodedata.normalize("NFC", path).casefold()
        if key not in self.names:
            self.names[key] = (path, is_folder)
            return True
        if self.names[key] == (path, True) and is_folder:
            return False
        raise DataError(
            f"members {self.names[key][0]!r} and {path!r} have one name, at least where case does not count"
        )

    def _write(self, member: Member, path: Path) -> None:
        free = free_bytes(self.work) - SPARE_BYTES
        if member.size > free:
            raise DataError(f"the disk has no room for {member.name!r}; make room or choose another place")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        written = 0
        with os.fdopen(handle, "wb") as file, member.open() as source:
            while chunk := source.read(min(_CHUNK, member.size - written + 1)):
                written += len(chunk)
                file.write(chunk)
                self.report(self.bytes + written, None)
        if written != member.size:
            raise DataError(f"member {member.name!r} does not have the {member.size} bytes that the archive says")
        self.bytes += written


@contextmanager
def _fresh_folder(target: Path) -> Iterator[Path]:
    """A hidden empty folder beside the one to be made; gone at the end, and what a killed run has left at the start."""
    if target.exists():
        raise DataError(f"{target} exists; move it away first")
    work = target.with_name(f".{target.name}.unpacking")
    target.parent.mkdir(parents=True, exist_ok=True)
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Every failure names the archive and says that nothing was unpacked."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{archive} is not unpacked: {error}") from error
    except _DAMAGE as error:
        raise DataError(f"{archive} is not unpacked: it is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{archive} is not unpacked: {error.strerror or error}") from error
