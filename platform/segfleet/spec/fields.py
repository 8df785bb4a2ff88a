"""The fields of a training by their dotted path: which there are, and what each takes."""

from __future__ import annotations

import difflib
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from segfleet.errors import Problem
from segfleet.spec.training import TrainingBody

# Who a job is, what it may use and where it stands in the line is the same for all trials.
_FIXED = frozenset({"recipe", "resources"})


@cache
def _fields() -> dict[str, FieldInfo]:
    found = {}
    for name, section in TrainingBody.model_fields.items():
        if name in _FIXED:
            continue
        for key, field in getattr(section.annotation, "model_fields", {}).items():
            found[f"{name}.{key}"] = field
    return found


def path_problem(place: str, path: str) -> Problem | None:
    """Why a path is none that a trial may set; None: it is one.

    Args:
        place: Where the path is written.
        path: Such as `optim.lr`.
    """
    known = _fields()
    if path in known:
        return None
    head = path.partition(".")[0]
    if head in _FIXED:
        return Problem(place, f"{head!r} is the same for all trials", f"set it in base.{path}")
    near = difflib.get_close_matches(path, known, n=1)
    sections = sorted({name.partition(".")[0] for name in known})
    hint = f"did you mean {near[0]!r}?" if near else f"write SECTION.FIELD of {', '.join(sections)}"
    return Problem(place, f"{path!r} is no field of a training", hint)


def number_kind(path: str) -> type[int] | type[float] | None:
    """Whether a field takes whole numbers or any, or none at all."""
    kinds = kinds_of(_fields()[path].annotation)
    return float if float in kinds else int if int in kinds else None


def value_trouble(path: str, value: Any) -> str:
    """Why a field can never have a value; empty: it can, as far as the field alone tells."""
    try:
        _adapter(path).validate_python(value)
    except ValidationError as error:
        messages = dict.fromkeys(item["msg"].removeprefix("Value error, ") for item in error.errors(include_url=False))
        return f"{value!r}: {'; '.join(text[:1].lower() + text[1:] for text in messages)}"
    return ""


@cache
def _adapter(path: str) -> TypeAdapter[Any]:
    field = _fields()[path]
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation allows, without bounds and names."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return set().union(*(kinds_of(part) for part in get_args(annotation)))
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    return set() if origin is Literal else {annotation}
