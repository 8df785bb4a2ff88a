"""Defaults of a training: from what the user wrote, by recipe and variant, to every field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segfleet.errors import Problem
from segfleet.spec.model_section import has_batch_norm
from segfleet.spec.recipes import BASELINE_DROPOUT, DECODER_DROPOUT, KIND_DEFAULTS, RECIPES, Defaults, variant_fields


def fill_training(document: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """What the user wrote of a training, over what its recipe and variant stand for.

    Args:
        document: A train spec, or the base of a search.
        problems: Where a variant that is none is added.
    """
    recipe = document.get("recipe", "none")
    filled = dict(KIND_DEFAULTS["train"])
    if isinstance(recipe, str):
        filled = merge(filled, RECIPES.get(recipe, RECIPES["none"]))
    filled = merge(filled, document)
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


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; where both say something, the second one's counts."""
    merged = dict(base)
    for key, value in over.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Value by dotted path of everything in nested mappings."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def fill_search(document: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """A search with its base filled in, and with the list of what the user wrote there.

    Args:
        document: As the user wrote it, or a full one, which has that list already.
        problems: As for `fill_training`.
    """
    filled = merge(KIND_DEFAULTS["search"], document)
    base = document.get("base")
    if not isinstance(base, Mapping):
        return filled
    own: list[Problem] = []
    # The line is the search's: a base has no queue.
    filled["base"] = {key: value for key, value in fill_training(base, own).items() if key != "queue" or key in base}
    problems += [Problem(f"base.{item.path}", item.message, item.hint) for item in own]
    if "written" not in document:
        filled["written"] = sorted(leaves(base))
    return filled
