"""Which pictures are meant by files, folders and patterns, and where the results of each belong."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.photo import SUFFIXES


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that is to be predicted.

    Attributes:
        path: Where it is.
        place: Where it belongs below the folder of results: its name, below the folder or pattern that it came from.
    """

    path: Path
    place: Path


@dataclass(frozen=True, slots=True)
class Targets:
    """The files of one picture's results; None: not wanted."""

    mask: Path
    overlay: Path | None
    probabilities: Path | None
    label_ids: Path | None = None

    def existing(self) -> list[Path]:
        """Those that are there already."""
        return [path for path in self.wanted() if _is_there(path)]

    def wanted(self) -> list[Path]:
        """All that are to be made."""
        paths = (self.mask, self.overlay, self.probabilities, self.label_ids)
        return [path for path in paths if path is not None]


def find_sources(names: Sequence[str], out: Path) -> list[Source]:
    """The pictures that are meant, each once, in a stable order.

    Args:
        names: Files, taken as they are; folders, with all below them that has a picture's suffix; patterns, likewise.
        out: The folder for results: what is below it is no input of a folder or pattern.

    Raises:
        DataError: a folder or pattern holds no picture or cannot be read, or `out` is a folder of pictures itself.
    """
    sources: dict[tuple[str, Path], Source] = {}
    for name in names:
        try:
            for source in _meant(name, out):
                sources.setdefault((os.path.realpath(source.path), source.place), source)
        except OSError as error:
            raise DataError(f"{error.filename or name!r} cannot be looked at: {error.strerror}") from error
    return list(sources.values())


def targets_of(
    source: Source, out: Path, *, overlay: bool, probabilities: bool, label_ids: str | None = None
) -> Targets:
    """`STEM.png`, `STEM-overlay.png` and `STEM-probabilities.npy`, in the picture's place below `out`.

    A benchmark's file of the name `label_ids` is in a folder of its own, `labelIds`: the benchmark's evaluator takes
    every picture that begins with the name for a prediction.
    """
    folder, stem = out / source.place.parent, source.place.stem
    return Targets(
        mask=folder / f"{stem}.png",
        overlay=folder / f"{stem}-overlay.png" if overlay else None,
        probabilities=folder / f"{stem}-probabilities.npy" if probabilities else None,
        label_ids=out / "labelIds" / label_ids if label_ids else None,
    )


def refuse_overwriting(sources: Sequence[Source], targets: Sequence[Targets]) -> None:
    """Make sure that every result has a file of its own that is no input.

    Raises:
        DataError: it has not.
    """
    results = Counter(file for one in targets for file in one.wanted())
    if doubled := sorted(str(file) for file, count in results.items() if count > 1):
        raise DataError(
            f"several pictures would have the results {_some(doubled)}; give the folder above them, "
            "whose layout is kept, or rename them"
        )
    pictures = {os.path.realpath(source.path): str(source.path) for source in sources}
    if lost := sorted(pictures[place] for place in map(os.path.realpath, results) if place in pictures):
        raise DataError(f"results would overwrite the pictures themselves: {_some(lost)}; choose another --out")


def _meant(name: str, out: Path) -> Iterator[Source]:
    path = Path(name)
    if path.is_dir():
        if path.resolve() == out.resolve():
            raise DataError(f"--out {str(out)!r} is a folder of pictures itself; choose another")
        root, found = path, list(path.rglob("*"))
    elif not path.exists() and glob.has_magic(name):
        # As a shell does it: ** at the end means files too, and hidden ones are left out.
        root, found = _fixed_part(path), [Path(file) for file in glob.glob(name, recursive=True)]  # noqa: PTH207
    else:
        # Also what is missing: it is named at the end like any other picture that cannot be read.
        yield Source(path, Path(path.name))
        return
    excluded = out.resolve()
    count = 0
    for file in sorted(found):
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.resolve().is_relative_to(excluded):
            count += 1
            yield Source(file, file.relative_to(root))
    if not count:
        raise DataError(f"{name!r} holds no picture ({', '.join(sorted(SUFFIXES))})")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # a name that cannot be looked up is told of when it is to be written


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern's own part begins below."""
    fixed = []
    for part in pattern.parent.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
