"""From what the user wrote to the full spec: defaults filled in, all problems found at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from segfleet.errors import Problem, SpecError
from segfleet.spec.explaining import explain
from segfleet.spec.filling import fill_search, fill_training, merge
from segfleet.spec.kinds import KINDS, JobSpec, SearchSpec
from segfleet.spec.recipes import KIND_DEFAULTS
from segfleet.spec.search import plan_problems


def resolve_spec(document: Mapping[str, Any], source: str = "spec") -> JobSpec:
    """Fill in the defaults of kind, recipe and variant, and validate.

    Args:
        document: What the user wrote, as plain data.
        source: What to call it in errors.

    Raises:
        SpecError: with every problem found.
    """
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        what = "missing" if kind is None else f"unknown kind {kind!r}"
        raise SpecError([Problem("kind", what, f"use one of {', '.join(sorted(KINDS))}")], source)
    filled = merge(KIND_DEFAULTS[kind], document)
    problems: list[Problem] = []
    if kind == "train":
        filled = fill_training(document, problems)
    elif kind == "search":
        filled = fill_search(document, problems)
    try:
        spec = KINDS[kind].model_validate_json(json.dumps(filled))
    except ValidationError as error:
        problems += explain(error, KINDS[kind])
    except (TypeError, ValueError) as error:
        problems.append(Problem("", f"not plain data: {error}"))
    else:
        problems += spec.problems()
        if not problems and isinstance(spec, SearchSpec):
            problems += plan_problems(spec)
        if not problems:
            return spec
    raise SpecError(problems, source)


def to_document(spec: JobSpec) -> dict[str, Any]:
    """The full spec as plain data; `resolve_spec` of it gives the same spec."""
    return spec.model_dump(mode="json", by_alias=True)
