"""The operator's bounds and fixed values on specs: pure decisions, asked at submit; accepted jobs are left alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from segfleet.errors import Problem, SpecError
from segfleet.queue.model import Document, gang_of
from segfleet.spec.fields import kinds_of
from segfleet.spec.filling import leaves
from segfleet.spec.kinds import KINDS
from segfleet.spec.search import values_of
from segfleet.spec.sections import duration_s
from segfleet.spec.space import split_paths
from segfleet.spec.training import TrainingBody

_DURATIONS = frozenset({"queue.time_limit", "queue.start_within"})


def rule_problems(limits: Document, forced: Document) -> list[Problem]:
    """What is wrong with an operator's `limits` and `forced`: fields that no spec has, bounds that are no bounds."""
    found = []
    for path, bound in leaves(limits).items():
        if path in _DURATIONS:
            found += _duration_problems(f"limits.{path}", bound)
        elif isinstance(bound, bool) or not isinstance(bound, int | float):
            found.append(Problem(f"limits.{path}", f"{bound!r} is no number"))
        elif (fields := _fields(path)) and not any(_is_number(field) for field in fields):
            hint = "only numbers and durations have an upper bound; 'forced' can fix any field"
            found.append(Problem(f"limits.{path}", "this field is no number", hint))
        found += _unknown(f"limits.{path}", path)
    for path in leaves(forced):
        found += _unknown(f"forced.{path}", path)
        if path.partition(".")[0] in ("kind", "name") or path == "queue.project":
            found.append(Problem(f"forced.{path}", "names the job or its project, which cannot be forced"))
    return found


def with_forced(document: Mapping[str, Any], forced: Document) -> tuple[Document, tuple[str, ...]]:
    """A user's document with the forced values in place.

    Sections that the job's kind does not have are passed over: a bound on training means nothing to a preparation.

    Returns:
        The document, and the paths at which it was changed.

    Raises:
        SpecError: a search varies a forced field.
    """
    model = KINDS.get(str(document.get("kind")))
    if model is None:
        return dict(document), ()
    sections = {field.alias or name for name, field in model.model_fields.items()}
    result, changed = dict(document), []
    for path, value in leaves(forced).items():
        place = _place(path, sections, document.get("kind") == "search")
        if not place:
            continue
        *parents, last = place.split(".")
        node = result
        for part in parents:
            inner = node.get(part)
            node[part] = node = dict(inner) if isinstance(inner, Mapping) else {}
        if last not in node or node[last] != value:
            node[last] = value
            changed.append(place)
    if document.get("kind") == "search":
        _keep_fixed(result, [path for path in leaves(forced) if path.partition(".")[0] in TrainingBody.model_fields])
    return result, tuple(changed)


def _keep_fixed(search: Document, paths: list[str]) -> None:
    """Let no trial undo what is forced upon the base of a search."""
    space, final = search.get("space"), search.get("final")
    varied = [path for key in space for path in split_paths(str(key))] if isinstance(space, Mapping) else []
    changes = final.get("set") if isinstance(final, Mapping) else None
    places = {"space": varied, "final.set": list(changes) if isinstance(changes, Mapping) else []}
    problems = [
        Problem(f"{place}.{path}", "the operator has fixed this field", "leave it out; see 'segfleet quota show'")
        for place, found in places.items()
        for path in paths
        if path in found
    ]
    if problems:
        raise SpecError(problems)
    if isinstance(written := search.get("written"), list):
        search["written"] = [*written, *(path for path in paths if path not in written)]


def _place(path: str, sections: Collection[str], is_search: bool) -> str:
    """Where a job's spec has a field; empty: nowhere."""
    head = path.partition(".")[0]
    if is_search and head in TrainingBody.model_fields:
        return f"base.{path}"
    return path if head in sections and not (is_search and path == "base") else ""


def limit_problems(spec: Document, limits: Document, whose: str) -> list[Problem]:
    """Where a resolved spec is beyond the bounds of the cluster or its project."""
    found = []
    for path, bound in leaves(limits).items():
        hint = f"at most {bound} is the rule of {whose}; lower it, or ask the operator ('segfleet quota show')"
        for place, value in _values(spec, path):
            if path in _DURATIONS:
                if value is None or duration_s(value) > duration_s(bound):
                    found.append(Problem(place, "missing" if value is None else f"{value} is too long", hint))
            elif isinstance(value, int | float) and value > bound:
                found.append(Problem(place, f"{value} is too much", hint))
    return found


def _values(spec: Document, path: str) -> list[tuple[str, Any]]:
    """(place, value) of all that a job will use of a field: one value, or for a search those of its trials."""
    found = [(path, value) for value in _look_up(spec, path)]
    if path == "resources.workers" and found and isinstance(found[0][1], Mapping):
        found = [("resources.workers.max", found[0][1]["max"])]
    if spec.get("kind") != "search":
        return found
    found += [(f"base.{path}", value) for value in _look_up(spec["base"], path)]
    found += values_of(spec, path)
    if path == "resources.workers":
        found.append(("search.max_parallel times base.resources.workers", gang_of(spec).max_workers))
    return found


def _duration_problems(place: str, bound: Any) -> list[Problem]:
    try:
        duration_s(bound)
    except (TypeError, ValueError):
        return [Problem(place, f"{bound!r} is no duration", "write for instance 90m, 48h or 7d")]
    return []


def _unknown(place: str, path: str) -> list[Problem]:
    if _fields(path):
        return []
    return [Problem(place, "no spec has this field", "write it as in a spec, such as resources.workers")]


def _is_number(field: FieldInfo) -> bool:
    return not {int, float}.isdisjoint(kinds_of(field.annotation))


def _fields(path: str) -> list[FieldInfo]:
    """The field of that path in every kind of spec that has it; what is inside lists has no path."""
    found = (_field(model, path.split(".")) for model in KINDS.values())
    return [field for field in found if field is not None]


def _field(model: Any, parts: Sequence[str]) -> FieldInfo | None:
    field = None
    for part in parts:
        fields = getattr(model, "model_fields", {})
        field = next((field for name, field in fields.items() if part == (field.alias or name)), None)
        if field is None:
            return None
        # A section may be optional: look past the None.
        model = next((kind for kind in kinds_of(field.annotation) if hasattr(kind, "model_fields")), None)
    return field


def _look_up(spec: Document, path: str) -> list[Any]:
    """The field's value; empty: there is no such field."""
    node: Any = spec
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return []
        node = node[part]
    return [node]
