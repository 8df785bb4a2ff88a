"""What must be the same before and after a checkpoint: the spec, the data, and the samples left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from segfleet.errors import CheckpointError
from segfleet.spec.model_section import ModelSpec
from segfleet.spec.sections import (
    AugmentSpec,
    DataSpec,
    LoopSpec,
    LossSpec,
    MixSpec,
    OptimSpec,
    Section,
)
from segfleet_pipelines.batch import Skips
from segfleet_pipelines.manifest import Manifest

_FIXED_SECTIONS: dict[str, type[Section]] = {
    "data": DataSpec,
    "model": ModelSpec,
    "optim": OptimSpec,
    "loss": LossSpec,
    "augment": AugmentSpec,
    "train": LoopSpec,
}
# How the same numbers come about, and who hears of them: these may change from one attempt to the next.
_FREE = {
    ("train", name) for name in ("micro_batch", "compile", "checkpoint_activations", "channels_last", "log_every")
} | {("train", "loader_processes")}


def check_same_spec(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare two specs in what decides the weights.

    What a checkpoint's spec lacks is newer than the checkpoint and was at its default then.

    Raises:
        CheckpointError: they differ; names the fields.
    """
    model_before = before.get("model", {})
    if "arch" not in model_before and model_before.get("decoder") == "linear":
        # Written before linear decoders knew dropout: the value stood there and meant nothing.
        before = {**before, "model": {**model_before, "decoder_dropout": 0.0}}
    changed = [
        f"{section}.{name}"
        for section, model in _FIXED_SECTIONS.items()
        for name, default in _defaults(model).items()
        if (section, name) not in _FREE
        and before.get(section, {}).get(name, default) != now.get(section, {}).get(name, default)
    ]
    if changed:
        raise CheckpointError(
            f"the checkpoint was written with other values in {', '.join(changed)}; submit a new job instead"
        )


def _defaults(section: type[Section]) -> dict[str, Any]:
    """Every field of a section with its default as plain data; None for one that must be given."""
    fields = section.model_fields.items()
    return {
        name: None if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in fields
    }


def check_same_data(before: Sequence[str], manifests: Sequence[Manifest], sources: Sequence[MixSpec]) -> None:
    """Compare the content ids of all datasets of a training.

    Raises:
        CheckpointError: one differs; names the dataset and both ids.
    """
    for content_id, manifest, source in zip(before, manifests, sources, strict=True):
        if content_id != manifest.content_id:
            raise CheckpointError(
                f"the checkpoint was written on data with content id {content_id[:12]}, {source.shards!r} now holds "
                f"{manifest.content_id[:12]}; put the data back, or begin again with 'segfleet retry --from-start'"
            )


def same_skips(before: Sequence[Sequence[int]], now: Skips, sources: Sequence[MixSpec]) -> Skips:
    """The samples that a job leaves out from its first step to its last: those of the checkpoint.

    A sample that has been mended since stays out, or the resumed run would not equal the whole one. One that has been
    damaged since cannot be left out, for the same reason.

    Raises:
        CheckpointError: samples have been damaged since.
    """
    skips = tuple(frozenset(samples) for samples in before)
    for old, new, source in zip(skips, now, sources, strict=True):
        if fresh := sorted(new - old):
            raise CheckpointError(
                f"{len(fresh)} samples of {source.shards!r}, split {source.split!r}, have been damaged since the "
                f"checkpoint was written, the first is number {fresh[0]}; restore the shards ('segfleet verify' names "
                "them), or begin again with 'segfleet retry --from-start'"
            )
    return skips
