"""From pydantic's errors to problems that say what to do."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import ValidationError

from segfleet.errors import Problem
from segfleet.spec.search_sections import BRANCHES
from segfleet.spec.sections import FORMS, short


def explain(error: ValidationError, kind: type[Any]) -> list[Problem]:
    """Every mistake that pydantic has found in a document of a kind, in our words."""
    return [_problem(item, kind) for item in error.errors(include_url=False)]


def _problem(item: Any, kind: type[Any]) -> Problem:
    # What is in brackets names a branch of a union, not a key.
    path = ".".join(str(part) for part in item["loc"] if not str(part).startswith("("))
    value = item["input"]
    match item["type"]:
        case "extra_forbidden":
            known = _known_keys(kind, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            return Problem(path, "unknown key", hint)
        case "missing":
            return Problem(path, "missing")
        case "value_error":
            # The check itself says what of the value may be shown: an address can hold a key.
            return Problem(path, item["msg"].removeprefix("Value error, "))
        case "string_pattern_mismatch" if item["ctx"]["pattern"] in FORMS:
            return Problem(path, f"{short(value)}: {FORMS[item['ctx']['pattern']]}")
        case _:
            text = item["msg"][:1].lower() + item["msg"][1:]
            return Problem(path, f"{short(value)}: {text}")


def _known_keys(kind: type[Any], path: tuple[Any, ...]) -> list[str]:
    model = kind
    branches = [place for place, part in enumerate(path) if part in BRANCHES]
    if branches:
        model, path = BRANCHES[path[branches[-1]]], path[branches[-1] + 1 :]
    for part in path:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = [c for c in candidates if isinstance(c, type) and hasattr(c, "model_fields")]
        if not nested:
            return []
        model = nested[0]
    return sorted(field.alias or name for name, field in model.model_fields.items())
