"""Registered models as text: where a version comes from, two of them side by side, gates and promotions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from segfleet.cli.output import number
from segfleet.spec.filling import leaves

Version = Mapping[str, Any]

_LICENCES = {"segfleet.licence.data": "data", "segfleet.licence.weights": "weights"}


def lineage(version: Version) -> list[str]:
    """Where a version comes from, drawn as a tree: job, search and trial, data, weights, file, code, licences."""
    tags = version["tags"]
    branches: list[tuple[str, list[str]]] = []
    if version["job"]:
        at = f" at step {tags['segfleet.step']}" if "segfleet.step" in tags else ""
        branches.append((f"job {version['job']}{at}", [_trial(tags)] if "segfleet.trial" in tags else []))
    if "segfleet.file" in tags:
        digest = tags.get("segfleet.content_digest", "")[:12]
        branches.append((f"file {tags['segfleet.file']} ({tags.get('segfleet.format', 'unknown')} code)", [digest]))
    if "segfleet.dataset" in tags:
        content = tags.get("segfleet.content_id", "")
        branches.append((f"dataset {tags['segfleet.dataset']}", [f"content {content[:12]}"] if content else []))
    if "segfleet.base" in tags:
        branches.append((f"weights {tags['segfleet.base']}", []))
    branches.append((f"MLflow run {version['run_id']}", []))
    if "segfleet.code_version" in tags:
        branches.append((f"code {tags['segfleet.code_version']}", []))
    branches.append(("licences", [f"{what}: {tags.get(tag, 'unknown')}" for tag, what in _LICENCES.items()]))
    return [f"{version['name']}/{version['version']}", *_tree(branches)]


def _trial(tags: Mapping[str, str]) -> str:
    trial, parent = tags["segfleet.trial"], tags.get("segfleet.parent_trial", tags["segfleet.trial"])
    return f"trial {trial} of the search" + (f", with the parameters of trial {parent}" if parent != trial else "")


def _tree(branches: list[tuple[str, list[str]]]) -> Iterator[str]:
    for i, (text, twigs) in enumerate(branches):
        is_last = i == len(branches) - 1
        yield f"{'└─' if is_last else '├─'} {text}"
        for j, twig in enumerate(twigs):
            yield f"{'  ' if is_last else '│ '} {'└─' if j == len(twigs) - 1 else '├─'} {twig}"


def comparison(ours: Version, theirs: Version) -> dict[str, Any]:
    """Two versions side by side.

    Returns:
        {"a", "b": NAME/VERSION, "figures": {name: {"a", "b", "difference"}}, "facts": ..., "spec": {path: {"a", "b"}}};
        figures have a difference where both sides have them, and specs are compared where both are known.
    """
    figures = {}
    for name in sorted({*ours["metrics"], *theirs["metrics"]}):
        a, b = ours["metrics"].get(name), theirs["metrics"].get(name)
        figures[name] = {"a": a, "b": b, "difference": None if a is None or b is None else b - a}
    names = ("segfleet.variant", "segfleet.parameters", "segfleet.bytes", "segfleet.dataset", "segfleet.content_id")
    facts = {
        name.removeprefix("segfleet."): {side: version["tags"].get(name) for side, version in _sides(ours, theirs)}
        for name in names
    }
    return {
        "a": f"{ours['name']}/{ours['version']}",
        "b": f"{theirs['name']}/{theirs['version']}",
        "figures": figures,
        "facts": facts,
        "spec": _spec_differences(ours, theirs),
    }


def comparison_rows(compared: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Rows of a table: what, of A, of B, difference; figures of one dataset follow each other."""
    for name, figure in compared["figures"].items():
        difference = figure["difference"]
        yield name, number(figure["a"]), number(figure["b"]), "-" if difference is None else f"{difference:+.4g}"
    for part in ("facts", "spec"):
        for name, values in compared[part].items():
            if values["a"] is not None or values["b"] is not None:
                a, b = ("-" if values[side] is None else str(values[side])[:40] for side in ("a", "b"))
                yield name, a, b, "" if a == b else "differs"


def gate_text(rules: Mapping[str, Any]) -> str:
    """A gate in a sentence."""
    how = "as validated" if rules["eval"] is None else f"window {rules['eval']['window']}"
    text = f"{rules['metric']} on {rules['shards']} ({rules['split']}, {how}) better by at least {rules['margin']:g}"
    if rules["tolerance"] is not None:
        text += f", or worse by at most {rules['tolerance']:g} at {rules['faster']:g} times the speed"
    return text


def figures_text(promotion: Mapping[str, Any]) -> str:
    """Both figures of a promotion, as `candidate / holder`."""
    sides = (promotion["figures"][side] for side in ("candidate", "holder"))
    return " / ".join(number(None if side is None else side["value"]) for side in sides)


def _sides(ours: Version, theirs: Version) -> tuple[tuple[str, Version], tuple[str, Version]]:
    return ("a", ours), ("b", theirs)


def _spec_differences(ours: Version, theirs: Version) -> dict[str, dict[str, Any]]:
    specs = [leaves(_spec_of(version)) for version in (ours, theirs)]
    if not all(specs):
        return {}
    paths = sorted({path for spec in specs for path in spec if specs[0].get(path) != specs[1].get(path)})
    return {path: {"a": specs[0].get(path), "b": specs[1].get(path)} for path in paths}


def _spec_of(version: Version) -> dict[str, Any]:
    try:
        spec = json.loads(version["tags"].get("segfleet.spec", "{}"))
    except ValueError:
        return {}
    return spec if isinstance(spec, dict) else {}
