"""The paper's figures, and a result beside them: only where model, dataset, pictures and scales are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from segfleet.spec.document import apply_overrides
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document

# Scales of the paper's multi-scale protocol, each flipped too.
NUM_SCALES = 6
_OF_A_ROW = ("arch", "backbone", "patch_size", "decoder", "decoder_layers", "dropout", "drop_path")
_NOT_THE_NETWORK = ("variant", "pretrained")


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of one of the paper's tables.

    Attributes:
        place: Where it stands: "table 3".
        model: As the paper names it.
        dataset: Whose validation set was scored, also the name of our recipe for it.
        variant: Our name of the model; None: this project has no training of it.
        changes: Value by path of what differs from the defaults of recipe and variant.
        figures: Value by column: single, multi (mIoU, per cent), images_per_s and others.
    """

    place: str
    model: str
    dataset: str
    variant: str | None
    changes: Mapping[str, Any]
    figures: Mapping[str, float]

    @property
    def is_own(self) -> bool:
        """Whether it is the paper's own model, whose training the recipe states."""
        return self.variant is not None and self.variant.startswith("seg-")

    def training(self) -> dict[str, Any]:
        """The resolved spec of the training behind the row, at any place of its data.

        Raises:
            ValueError: it has no variant.
        """
        if self.variant is None:
            raise ValueError(f"{self.model} of {self.place} is none of this project's models")
        return _training(self.dataset, self.variant, tuple(self.changes.items()))


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One of the paper's tables, or a figure's points.

    Attributes:
        place: "table 3".
        title: What it compares.
        columns: Of its figures.
        entries: Its rows.
    """

    place: str
    title: str
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored, and how.

    Attributes:
        dataset: The prepared dataset's name.
        num_samples: Pictures that were scored.
        model: arch, backbone, patch_size, decoder, decoder_layers, dropout, drop_path.
        crop: Side of the training crop, pixels.
        scales: Of the evaluation.
        flip: Whether flipped pictures were averaged too.
        miou: The result, 0..1.
        share: Of the training samples that were used.
    """

    dataset: str
    num_samples: int
    model: Mapping[str, Any]
    crop: int
    scales: Sequence[float]
    flip: bool
    miou: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our mIoU beside one of the paper's, per cent.

    Attributes:
        table: Of the paper, such as "table 3".
        variant: The paper's model, in our words.
        scales: "single" or "multi".
        ours: Our figure.
        paper: The paper's.
    """

    table: str
    variant: str
    scales: str
    ours: float
    paper: float

    @property
    def difference(self) -> float:
        """Ours less the paper's, in points."""
        return self.ours - self.paper


def compare(scored: Scored) -> tuple[list[Comparison], str]:
    """The paper's figures for the same thing; where there are none, why.

    Returns:
        The comparisons, and the reason if there are none (else empty).
    """
    samples = paper_document()["datasets"].get(scored.dataset, {}).get("samples")
    if samples is None:
        return [], f"the paper has no figures for {scored.dataset!r}"
    if scored.num_samples not in samples:
        return [], (
            f"scored on {scored.num_samples} pictures, the paper's figures for {scored.dataset} are of {samples[0]}"
        )
    scales = scales_of(scored.scales, scored.flip)
    found = [
        Comparison(entry.place, str(entry.variant), scales, 100 * scored.miou, entry.figures[scales])
        for table in paper_tables()
        for entry in table.entries
        if entry.dataset == scored.dataset and scales in entry.figures and _is_same(entry, scored)
    ]
    return found, "" if found else f"the paper has no {scales}-scale figure of this model and crop on {scored.dataset}"


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """All tables of the paper's figures, in its order."""
    return tuple(
        PaperTable(place, table["title"], tuple(table["columns"]), tuple(_entries(place, table)))
        for place, table in paper_document()["tables"].items()
    )


@cache
def paper_document() -> dict[str, Any]:
    """The file of the paper's figures."""
    text = resources.files("segfleet_jobs").joinpath("paper.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def scales_of(scales: Sequence[float], flip: bool) -> str:
    """Which of the paper's protocols an evaluation follows: single, multi or other."""
    if list(scales) == [1.0] and not flip:
        return "single"
    return "multi" if len(scales) == NUM_SCALES and flip else "other"


def network(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model section says of the network itself; baselines go by their variant, whose encoder may have a tag."""
    if model.get("arch", "segmenter") != "segmenter":
        return {"variant": model.get("variant")}
    fields = {name: value for name, value in model.items() if name not in _NOT_THE_NETWORK}
    if fields.get("decoder") == "linear":
        # Fields of the mask transformer, which a recipe may set for all.
        fields = {name: value for name, value in fields.items() if name not in ("decoder_layers", "decoder_drop_path")}
    return fields


def _entries(place: str, table: Mapping[str, Any]) -> list[Entry]:
    columns = table["columns"]
    return [
        Entry(
            place,
            str(row["model"]),
            table["dataset"],
            row.get("variant"),
            row.get("set", {}),
            {name: float(row[name]) for name in columns if name in row},
        )
        for row in table["rows"]
    ]


@cache
def _training(dataset: str, variant: str, changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    document = {
        "kind": "train",
        "name": "paper",
        "recipe": dataset,
        "data": {"shards": f"/{dataset}"},
        "model": {"variant": variant},
    }
    spec = resolve_spec(apply_overrides(document, [f"{path}={value}" for path, value in changes]))
    assert isinstance(spec, TrainSpec)
    return to_document(spec)


def _is_same(entry: Entry, scored: Scored) -> bool:
    """Whether a result is of the model of a row. A decoder's own dropout is not looked at: others left it out."""
    if not entry.is_own:
        return False
    wanted = entry.training()
    fields = network(wanted["model"])
    return (
        all(scored.model.get(name) == fields[name] for name in _OF_A_ROW if name in fields)
        and wanted["train"]["crop"] == scored.crop
        and wanted["data"]["share"] == scored.share
    )
