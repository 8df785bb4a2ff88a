"""From what the user wrote to the full spec: defaults filled in, all problems found at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from segfleet.errors import Problem, SpecError
from segfleet.spec.kinds import KINDS, JobSpec
from segfleet.spec.recipes import BASELINE_DROPOUT, DECODER_DROPOUT, KIND_DEFAULTS, RECIPES, Defaults, variant_fields
from segfleet.spec.sections import has_batch_norm


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
    filled = _merge(KIND_DEFAULTS[kind], document)
    problems: list[Problem] = []
    if kind == "train":
        filled = _fill_training(document, problems)
    try:
        spec = KINDS[kind].model_validate_json(json.dumps(filled))
    except ValidationError as error:
        problems += _explain(error, KINDS[kind])
    except (TypeError, ValueError) as error:
        problems.append(Problem("", f"not plain data: {error}"))
    else:
        problems += spec.problems()
        if not problems:
            return spec
    raise SpecError(problems, source)


def to_document(spec: JobSpec) -> dict[str, Any]:
    """The full spec as plain data; `resolve_spec` of it gives the same spec."""
    return spec.model_dump(mode="json", by_alias=True)


def _fill_training(document: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    recipe = document.get("recipe", "none")
    filled = dict(KIND_DEFAULTS["train"])
    if isinstance(recipe, str):
        filled = _merge(filled, RECIPES.get(recipe, RECIPES["none"]))
    filled = _merge(filled, document)
    written, model = document.get("model", {}), filled["model"]
    if isinstance(model, dict) and isinstance(written, dict):
        filled["model"] = _fill_model(model, written, problems)
        filled["train"] = _fill_loop(filled["train"], document.get("train"), filled["model"])
    return filled


def _fill_model(model: Defaults, written: Mapping[str, Any], problems: list[Problem]) -> Defaults:
    """The fields a variant stands for, and the decoder's own dropout; a default variant gives way to own fields."""
    # Another architecture leaves nothing of the default variant.
    is_other = written.get("arch", "segmenter") != "segmenter"
    own_fields = {"backbone", "patch_size", "decoder"} <= written.keys() or is_other
    if own_fields and "variant" not in written:
        model = {key: value for key, value in model.items() if key != "variant"}
    elif isinstance(model.get("variant"), str):
        try:
            model = {**variant_fields(model["variant"]), **model}
        except ValueError as error:
            problems.append(Problem("model.variant", str(error)))
            model = {**variant_fields("seg-s-mask/16"), **model}
    decoder = model.get("decoder")
    if decoder == "linear" and "arch" not in written and "decoder_drop_path" in written and "variant" in written:
        # Resolved before there were architectures: linear decoders had this value too, and no dropout.
        model = {**model, "decoder_dropout": 0.0}
    dropout = DECODER_DROPOUT.get(decoder, 0.0) if isinstance(decoder, str) else BASELINE_DROPOUT
    return {"decoder_dropout": dropout, **model}


def _fill_loop(loop: Any, written: Any, model: Defaults) -> Any:
    """Batch normalisation has no use for a recipe's short last batch."""
    is_written = isinstance(written, Mapping) and "last_batch" in written
    if is_written or not isinstance(loop, Mapping) or not has_batch_norm(model):
        return loop
    return {**loop, "last_batch": "wrap"}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError, kind: type[Any]) -> list[Problem]:
    return [_problem(item, kind) for item in error.errors(include_url=False, include_context=False)]


def _problem(item: Any, kind: type[Any]) -> Problem:
    path = ".".join(str(part) for part in item["loc"])
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
            return Problem(path, item["msg"].removeprefix("Value error, "))
        case _:
            text = item["msg"][:1].lower() + item["msg"][1:]
            return Problem(path, f"{_short(value)}: {text}")


def _known_keys(kind: type[Any], path: tuple[Any, ...]) -> list[str]:
    model = kind
    for part in path:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = [c for c in candidates if isinstance(c, type) and hasattr(c, "model_fields")]
        if not nested:
            return []
        model = nested[0]
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
