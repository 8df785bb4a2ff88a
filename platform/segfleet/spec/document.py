"""Read a spec document: YAML 1.2's core types without tags, anchors, aliases or duplicate keys, or JSON.

Plain YAML loaders turn `on` into true, `012` into 10, `1e-3` into a string, keep the last of two equal keys, and
expand a few hundred bytes of aliases into gigabytes. A spec is read by people and by a queue: none of that is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segfleet.errors import Problem, SpecError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20


class _CoreLoader(yaml.SafeLoader):
    """A safe loader with YAML 1.2's scalar types, no aliases and no duplicate keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.events.AliasEvent):
            raise _refused(event, f"alias *{event.anchor} is not allowed; write the value out")
        if getattr(event, "anchor", None):
            raise _refused(event, f"anchor &{event.anchor} is not allowed; write the value out")
        if getattr(event, "tag", None):
            raise _refused(event, f"tag {event.tag} is not allowed")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(event, f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refused(at: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _construct_mapping(loader: _CoreLoader, node: yaml.MappingNode) -> dict[str, Any]:
    first_lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key, "a key must be a plain word")
        if key.value in first_lines:
            raise _refused(key, f"duplicate key {key.value!r} (first on line {first_lines[key.value]})")
        first_lines[key.value] = key.start_mark.line + 1
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


_CoreLoader.yaml_implicit_resolvers = {}
_CoreLoader.yaml_constructors = {**yaml.SafeLoader.yaml_constructors}
_CoreLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_document(text: str, source: str = "spec") -> dict[str, Any]:
    """Turn the text of a spec into plain data.

    Args:
        text: YAML or JSON, at most 64 KiB, one document.
        source: What to call it in errors, for instance the file's name.

    Raises:
        SpecError: not readable, not a mapping, or using anything outside the safe subset; names line and column.
    """
    if len(text.encode()) > MAX_BYTES:
        raise SpecError([Problem("", f"{len(text.encode())} bytes; a spec has at most {MAX_BYTES}")], source)
    try:
        data = yaml.load(text, Loader=_CoreLoader)  # noqa: S506 - a SafeLoader with less in it
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError([Problem(place, error.problem or "not readable as YAML")], source) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError([Problem("", f"not readable as YAML: {error}")], source) from error
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise SpecError([Problem("", f"the document is {kind}", "a spec is a mapping such as 'kind: train'")], source)
    return data


def read_document(path: Path) -> dict[str, Any]:
    """Read and parse a spec file.

    Raises:
        SpecError: the file cannot be read or parsed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError([Problem("", f"cannot be read: {reason}")], str(path)) from error
    return parse_document(text, str(path))


def parse_override(assignment: str) -> tuple[tuple[str, ...], Any]:
    """Parse one `--set path=value`; the value is read as YAML.

    Raises:
        SpecError: no `=` or an empty path.
    """
    path, equals, value = assignment.partition("=")
    parts = tuple(part.strip() for part in path.split("."))
    if not equals or not all(parts):
        raise SpecError([Problem("", f"{assignment!r} is not of the form path=value")], "--set")
    return parts, parse_document(f"value: {value}" if value.strip() else "value:", f"--set {path}")["value"]


def apply_overrides(document: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """A copy of the document with each `path=value` put in place.

    Raises:
        SpecError: an assignment is malformed or goes through a value that is no mapping.
    """
    result = {key: _copy(value) for key, value in document.items()}
    for assignment in assignments:
        (*parents, last), value = parse_override(assignment)
        node = result
        for depth, part in enumerate(parents):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                path = ".".join(parents[: depth + 1])
                raise SpecError([Problem(path, f"holds {node!r}, so {assignment!r} has nowhere to go")], "--set")
        node[last] = value
    return result


def apply_overlay(document: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the document with another one laid over it, as JSON Merge Patch (RFC 7396) defines it.

    Mappings are merged key by key; any other value takes the place of what was there, lists as a whole; null takes the
    key out.
    """
    result = {key: _copy(value) for key, value in document.items()}
    for key, value in overlay.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            under = result.get(key)
            result[key] = apply_overlay(under if isinstance(under, Mapping) else {}, value)
        else:
            result[key] = _copy(value)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
