"""The operator's bounds and fixed values on specs: pure decisions, asked at submit; accepted jobs are left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from segfleet.errors import Problem
from segfleet.queue.model import Document
from segfleet.spec.kinds import KINDS
from segfleet.spec.sections import duration_s

_DURATIONS = frozenset({"queue.time_limit"})


def rule_problems(limits: Document, forced: Document) -> list[Problem]:
    """What is wrong with an operator's `limits` and `forced`: fields that no spec has, bounds that are no bounds."""
    found = []
    for path, bound in leaves(limits):
        if path in _DURATIONS:
            found += _duration_problems(f"limits.{path}", bound)
        elif isinstance(bound, bool) or not isinstance(bound, int | float):
            found.append(Problem(f"limits.{path}", f"{bound!r} is no number"))
        found += _unknown(f"limits.{path}", path)
    for path, _ in leaves(forced):
        found += _unknown(f"forced.{path}", path)
        if path.partition(".")[0] in ("kind", "name") or path == "queue.project":
            found.append(Problem(f"forced.{path}", "names the job or its project, which cannot be forced"))
    return found


def with_forced(document: Mapping[str, Any], forced: Document) -> tuple[Document, tuple[str, ...]]:
    """A user's document with the forced values in place.

    Sections that the job's kind does not have are passed over: a bound on training means nothing to a preparation.

    Returns:
        The document, and the paths at which it was changed.
    """
    model = KINDS.get(str(document.get("kind")))
    if model is None:
        return dict(document), ()
    sections = {field.alias or name for name, field in model.model_fields.items()}
    result, changed = dict(document), []
    for path, value in leaves(forced):
        *parents, last = path.split(".")
        if (parents or [last])[0] not in sections:
            continue
        node = result
        for part in parents:
            inner = node.get(part)
            node[part] = node = dict(inner) if isinstance(inner, Mapping) else {}
        if last not in node or node[last] != value:
            node[last] = value
            changed.append(path)
    return result, tuple(changed)


def limit_problems(spec: Document, limits: Document, whose: str) -> list[Problem]:
    """Where a resolved spec is beyond the bounds of the cluster or its project."""
    found = []
    for path, bound in leaves(limits):
        has_field, value = _look_up(spec, path)
        if not has_field:
            continue
        hint = f"at most {bound} is the rule of {whose}; lower it, or ask the operator ('segfleet quota show')"
        if path in _DURATIONS:
            if value is None or duration_s(value) > duration_s(bound):
                found.append(Problem(path, "missing" if value is None else f"{value} is too long", hint))
        elif isinstance(value, int | float) and value > bound:
            found.append(Problem(path, f"{value} is too much", hint))
    return found


def leaves(document: Document, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in nested mappings."""
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from leaves(dict(value), f"{path}.")
        else:
            yield path, value


def _duration_problems(place: str, bound: Any) -> list[Problem]:
    try:
        duration_s(bound)
    except (TypeError, ValueError):
        return [Problem(place, f"{bound!r} is no duration", "write for instance 90m, 48h or 7d")]
    return []


def _unknown(place: str, path: str) -> list[Problem]:
    if any(_has_field(model, path.split(".")) for model in KINDS.values()):
        return []
    return [Problem(place, "no spec has this field", "write it as in a spec, such as resources.workers")]


def _has_field(model: Any, parts: list[str]) -> bool:
    for part in parts:
        fields = getattr(model, "model_fields", {})
        field = next((field for name, field in fields.items() if part == (field.alias or name)), None)
        if field is None:
            return False
        # A section may be optional: look past the None.
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return True


def _look_up(spec: Document, path: str) -> tuple[bool, Any]:
    node: Any = spec
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node
