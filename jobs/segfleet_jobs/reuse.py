"""Whether a preparation can take the dataset that an earlier, equal one has left in the same place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.verify import check_shards


def fingerprint(spec: PrepareSpec) -> str:
    """What tells the inputs of a preparation from others: names, sizes and times of the raw files, and the base.

    Pictures are not read: a file that is rewritten in place gets another time.

    Returns:
        SHA-256, hex.

    Raises:
        DataError: the raw data or the base cannot be read.
    """
    told = hashlib.sha256()
    if spec.base is not None:
        told.update(f"{Manifest.load(spec.base).content_id}\n".encode())
    if spec.raw is not None:
        try:
            for line in sorted(_files(resolve_location(spec.raw))):
                told.update(line)
        except OSError as error:
            raise DataError(f"raw data {spec.raw!r} cannot be read: {error.strerror}") from error
    return told.hexdigest()


def reuse(spec: PrepareSpec, earlier: Mapping[str, Any], inputs: str) -> dict[str, Any] | None:
    """The result of an earlier job as that of this one, if its dataset is still there and what this one would make.

    Args:
        spec: Of this job; equal to the earlier one's.
        earlier: {"job_id", "result"} of that.
        inputs: The fingerprint of this one's inputs.

    Returns:
        Its result with the job that has done the work as `reused_from`; None: there is none, or its raw
        data are not known.

    Raises:
        DataError: the dataset is there, but it is damaged, another one, or of raw data that have changed since.
    """
    result = earlier["result"]
    if "inputs" not in result:
        return None  # of a release that noted nothing of them
    try:
        manifest = Manifest.load(spec.out)
    except DataError:
        return None  # what else may be there is for `prepare` to judge
    maker = result.get("reused_from", earlier["job_id"])
    if manifest.content_id != result["content_id"]:
        why = f"is no longer what {maker} has prepared there"
    elif result["inputs"] != inputs:
        why = f"was prepared by {maker}, and the raw data have changed since"
    else:
        for split in manifest.splits:
            check_shards(spec.out, split)
        return {**result, "reused_from": maker}
    raise DataError(f"the dataset in {spec.out!r} {why}; give another out, or remove that folder first")


def _files(raw: Path) -> Iterator[bytes]:
    """A line for each file; links are followed, as the preparation does, but none in circles."""
    if not raw.is_dir():
        yield _line(raw, raw.name)
        return
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(raw, followlinks=True, onerror=_give_up):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            yield _line(path, str(path.relative_to(raw)))


def _line(path: Path, name: str) -> bytes:
    try:
        stat = path.stat()
    except FileNotFoundError:  # a link to nowhere
        stat = path.lstat()
    return b"\0".join((os.fsencode(name), b"%d %d\n" % (stat.st_size, stat.st_mtime_ns)))


def _give_up(error: OSError) -> None:
    raise error
