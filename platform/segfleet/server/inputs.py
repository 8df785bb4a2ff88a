"""Whether the files that a job reads are there. Service and jobs see the same file system."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

from segfleet.errors import Problem, SpecError
from segfleet.spec.kinds import JobSpec, TrainSpec

_MANIFEST = "manifest.json"


def require_inputs(spec: JobSpec) -> None:
    """Refuse a job that would start only to find that it has nothing to read.

    Raises:
        SpecError: with every location at which nothing usable is.
    """
    problems: list[Problem] = []
    if isinstance(spec, TrainSpec):
        if not _is_json(_path(spec.data.shards) / _MANIFEST):
            text = f"no prepared dataset in {spec.data.shards!r}"
            problems.append(Problem("data.shards", text, "prepare it first with 'segfleet prepare'"))
        weights = spec.model.pretrained
        if isinstance(weights, str) and not _path(weights).is_file():
            problems.append(
                Problem("model.pretrained", f"no file {weights!r}", "true takes timm's weights, false none")
            )
    elif spec.raw is not None and not _path(spec.raw).is_dir():
        problems.append(Problem("raw", f"no folder {spec.raw!r}"))
    if problems:
        raise SpecError(problems)


def _path(location: str) -> Path:
    return Path(unquote(urlsplit(location).path) if location.startswith("file://") else location)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True
