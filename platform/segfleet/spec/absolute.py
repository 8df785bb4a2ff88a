"""Relative paths in a spec mean the folder of whoever wrote it, which the service does not know: make them absolute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Fields of a spec that hold a path.
_LOCATIONS = (("data", "shards"), ("model", "pretrained"), ("raw",), ("out",), ("base",))
_VARIED = frozenset({"data.shards", "model.pretrained"})


def with_absolute_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a spec as a user wrote it, with every relative path made absolute.

    Args:
        document: Plain data, right or wrong.
    """
    result = dict(document)
    for *parents, field in _LOCATIONS:
        holder: Any = result
        for parent in parents:
            inner = holder.get(parent)
            if not isinstance(inner, Mapping):
                break
            holder[parent] = holder = dict(inner)
        else:
            if field in holder:
                holder[field] = _absolute(holder[field])
    data = result.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("mix"), list):
        result["data"] = {**data, "mix": [_mixed(part) for part in data["mix"]]}
    return _with_absolute_choices(result) if document.get("kind") == "search" else result


def _mixed(part: Any) -> Any:
    if not isinstance(part, Mapping) or "shards" not in part:
        return part
    return {**part, "shards": _absolute(part["shards"])}


def _with_absolute_choices(document: dict[str, Any]) -> dict[str, Any]:
    """The same for a search: its base is the body of a training, and its space and final training may set paths."""
    result = dict(document)
    if isinstance(base := document.get("base"), Mapping):
        result["base"] = with_absolute_paths(base)
    if isinstance(space := document.get("space"), Mapping):
        result["space"] = {key: _choices(str(key).replace(" ", "").split(","), body) for key, body in space.items()}
    final = document.get("final")
    if isinstance(final, Mapping) and isinstance(final.get("set"), Mapping):
        changes = {path: _absolute(value) if path in _VARIED else value for path, value in final["set"].items()}
        result["final"] = {**final, "set": changes}
    return result


def _choices(paths: list[str], body: Any) -> Any:
    if isinstance(body, Mapping) and isinstance(body.get("cases"), Mapping):
        is_by_path = body.get("given") in _VARIED
        cases = {_case(case) if is_by_path else case: _choices(paths, each) for case, each in body["cases"].items()}
        return {**body, "cases": cases}
    if not isinstance(body, list) or not _VARIED & set(paths):
        return body
    if len(paths) == 1:
        return [_absolute(option) for option in body]
    return [_option(paths, option) for option in body]


def _option(paths: list[str], option: Any) -> Any:
    if not isinstance(option, list) or len(option) != len(paths):
        return option
    return [_absolute(value) if path in _VARIED else value for path, value in zip(paths, option, strict=True)]


def _case(key: Any) -> Any:
    """Other values of these fields than paths are written as words, too, where they are a key."""
    return key if key in ("true", "false", "null") else _absolute(key)


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value.strip() and "://" not in value:
        return str(Path(value).expanduser().absolute())
    return value
