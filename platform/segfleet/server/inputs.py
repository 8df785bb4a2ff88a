"""Whether the files that a job reads are there.

Service and jobs see the same file system, so paths are looked at. What lies at s3://, gs://, http:// or https:// is
not: a service that fetched any address a spec names would fetch it for whoever may submit one, from inside its network,
with its own keys. A job finds out in its first seconds, and says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from segfleet.errors import ModelError, Problem, ServiceError, SpecError
from segfleet.spec.kinds import EvaluateSpec, JobSpec, PrepareSpec, SearchSpec, TrainSpec
from segfleet.spec.location import split_location
from segfleet.spec.reference import split_reference
from segfleet.spec.resolve import to_document
from segfleet.spec.search import values_of
from segfleet.spec.training import TrainingBody

if TYPE_CHECKING:
    from segfleet.registry.registry import Registry

_MANIFEST = "manifest.json"
# Bytes; ten thousand shards make two million.
_LARGEST_MANIFEST = 64 * 1024**2


def require_inputs(spec: JobSpec) -> None:
    """Refuse a job that would start only to find that it has nothing to read on this file system.

    Raises:
        SpecError: with every path at which nothing usable is.
    """
    match spec:
        case TrainSpec():
            problems = _training_problems(spec, bool(spec.queue.after))
        case SearchSpec():
            problems = _search_problems(spec)
        case EvaluateSpec():
            problems = [] if spec.queue.after else _dataset_problems("data.shards", spec.data.shards)
        case PrepareSpec():
            problems = _preparing_problems(spec)
    if problems:
        raise SpecError(problems)


def require_model(spec: JobSpec, registry: Registry) -> None:
    """Refuse to evaluate a model that the registry does not have.

    A registry that does not answer is no reason to refuse, nor is a model that a job to be followed may still make.

    Raises:
        SpecError: no such model, version or alias.
    """
    if not isinstance(spec, EvaluateSpec) or spec.queue.after or not registry.is_up():
        return
    try:
        registry.version(*split_reference(spec.model))
    except ModelError as error:
        raise SpecError([Problem("model", str(error))]) from error
    except ServiceError:
        return


def _training_problems(spec: TrainingBody, follows: bool) -> list[Problem]:
    datasets = {"data.shards": spec.data.shards}
    datasets |= {f"data.mix.{place}.shards": other.shards for place, other in enumerate(spec.data.mix)}
    # What a job follows may still have to make its data.
    looked_at = {} if follows else datasets
    problems = [problem for field, location in looked_at.items() for problem in _dataset_problems(field, location)]
    return problems + _weights_problems("model.pretrained", spec.model.pretrained)


def _weights_problems(field: str, weights: object) -> list[Problem]:
    if isinstance(weights, str) and not _path(weights).is_file():
        return [Problem(field, f"no file {weights!r}", "true takes timm's weights, false none")]
    return []


def _search_problems(spec: SearchSpec) -> list[Problem]:
    """Of the base, and of all that the space and the final training put in its place."""
    follows, document = bool(spec.queue.after), to_document(spec)
    of_base = _training_problems(spec.base, follows)
    problems = [Problem(f"base.{item.path}", item.message, item.hint) for item in of_base]
    for place, value in values_of(document, "data.shards"):
        problems += [] if follows else _dataset_problems(place, str(value))
    for place, value in values_of(document, "model.pretrained"):
        problems += _weights_problems(place, value)
    return problems


def _preparing_problems(spec: PrepareSpec) -> list[Problem]:
    problems = _dataset_problems("base", spec.base) if spec.base is not None else []
    # Some datasets are read straight from their zip file.
    if spec.raw is not None and not (_path(spec.raw).is_dir() or _path(spec.raw).is_file()):
        problems.append(Problem("raw", f"no folder or file {spec.raw!r}"))
    return problems


def _dataset_problems(field: str, location: str) -> list[Problem]:
    folder = split_location(location).folder
    if folder is None or _is_json(folder / _MANIFEST):
        return []
    return [Problem(field, f"no prepared dataset in {location!r}", "prepare it first with 'segfleet prepare'")]


def _path(location: str) -> Path:
    return Path(split_location(location).path)


def _is_json(path: Path) -> bool:
    try:
        # No pipe, whose writer the service would wait for, and nothing that fills its memory.
        if not path.is_file() or path.stat().st_size > _LARGEST_MANIFEST:
            return False
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True
