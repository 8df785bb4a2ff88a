"""Trainings in the paper's tables: which row each one is, what keeps it from being the paper's, and what is missing.

A training stands in a row if recipe, network and share of the data are the row's. It is compared with the paper's
figure only if all else that decides the figure is the same too: then a run at toy size says by itself that it is none.
Nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segfleet_jobs.paper import Entry, PaperTable, network, paper_document, paper_tables, scales_of

Spec = Mapping[str, Any]

# What decides the weights and the score of a training beside its row: of the paper's own models, and of the others,
# whose recipes are their authors'.
_OWN: dict[str, tuple[str, ...]] = {
    "train": ("steps", "global_batch", "last_batch", "crop", "ema"),
    "optim": (),
    "loss": (),
    "augment": (),
    "eval": ("short_side", "window", "stride", "protocol"),
}
_OTHERS: dict[str, tuple[str, ...]] = {"train": ("steps", "crop")}
_FREE = {("augment", "on_device")}
PERCENT = ("single", "multi", "small", "medium", "large")
_SINGLE_SCALE = ("single", "small", "medium", "large")


@dataclass(frozen=True, slots=True)
class Data:
    """The dataset that a training was scored on.

    Attributes:
        name: As its manifest says.
        num_samples: Pictures of the split.
    """

    name: str
    num_samples: int


@dataclass(frozen=True, slots=True)
class Run:
    """A training with what is known of its end.

    Attributes:
        name: For people, such as "trial 3".
        spec: Resolved, as plain data.
        figures: mIoU as `miou` and of classes by size, 0..1, after the last step; images_per_s.
        data: What it was scored on; None: that cannot be looked at any more.
        missing: Why it has no figures; empty if it has.
    """

    name: str
    spec: Spec
    figures: Mapping[str, float]
    data: Data | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table with our training of it.

    Attributes:
        entry: The paper's row.
        run: Ours; None: there is none.
        ours: Our figures by column, mIoU in per cent.
        differs: What keeps them from being compared; empty if nothing does.
        missing: Why we have no figure; empty if we have one.
    """

    entry: Entry
    run: Run | None
    ours: Mapping[str, float]
    differs: tuple[str, ...]
    missing: str

    @property
    def difference(self) -> dict[str, float]:
        """Ours less the paper's in points, by column of mIoU; empty where it may not be compared."""
        if self.differs:
            return {}
        columns = (name for name in PERCENT if name in self.ours and name in self.entry.figures)
        return {name: self.ours[name] - self.entry.figures[name] for name in columns}


def tables_of(specs: Sequence[Spec]) -> tuple[PaperTable, ...]:
    """The tables in which all these trainings have a place, and not all of them the same one."""
    found = []
    for table in paper_tables():
        places = [entry_of(table, spec) for spec in specs]
        if None not in places and len({entry.model for entry in places if entry is not None}) > 1:
            found.append(table)
    return tuple(found)


def entry_of(table: PaperTable, spec: Spec) -> Entry | None:
    """The row that a training belongs to: of the same recipe, network and share of the data."""
    for entry in table.entries:
        if entry.variant is not None and spec["recipe"] == entry.dataset:
            wanted = entry.training()
            is_same = network(spec["model"]) == network(wanted["model"])
            if is_same and spec["data"]["share"] == wanted["data"]["share"]:
                return entry
    return None


def fill(table: PaperTable, runs: Sequence[Run]) -> tuple[Row, ...]:
    """Every row of a table, with our run where there is one.

    Args:
        table: The paper's.
        runs: Ours; of several in one row, the one that differs least from the paper's, and has figures, is shown.
    """
    rows = []
    for entry in table.entries:
        own = [run for run in runs if entry_of(table, run.spec) == entry]
        if not own:
            rows.append(Row(entry, None, {}, (), "missing"))
            continue
        best = min(own, key=lambda run: (bool(run.missing), len(differences(entry, run.spec, run.data))))
        rows.append(_row(entry, best))
    return tuple(rows)


def differences(entry: Entry, spec: Spec, data: Data | None) -> tuple[str, ...]:
    """What keeps a training of a row's network from being comparable with the paper's figure, a phrase each."""
    wanted = entry.training()
    found = list(_data_differences(entry, data))
    if spec["model"]["pretrained"] is False:
        found.append("model.pretrained is false")
    if scales_of(spec["eval"]["scales"], spec["eval"]["flip"]) == "other":
        found.append("eval.scales are neither one nor the paper's six with flip")
    for section, names in (_OWN if entry.is_own else _OTHERS).items():
        for name in names or wanted[section]:
            ours, theirs = spec[section].get(name), wanted[section][name]
            if ours != theirs and (section, name) not in _FREE:
                found.append(f"{section}.{name} is {_plain(ours)}, not {_plain(theirs)}")
    return tuple(found)


def _data_differences(entry: Entry, data: Data | None) -> Sequence[str]:
    samples = paper_document()["datasets"][entry.dataset]["samples"]
    if data is None:
        return ["the dataset cannot be looked at"]
    if data.name != entry.dataset:
        return [f"the dataset is {data.name}, not {entry.dataset}"]
    if data.num_samples not in samples:
        return [f"scored on {data.num_samples:,} pictures, not {samples[0]:,}"]
    return []


def _row(entry: Entry, run: Run) -> Row:
    scales = scales_of(run.spec["eval"]["scales"], run.spec["eval"]["flip"])
    ours = {}
    if not run.missing:
        known = {**run.figures, scales: run.figures["miou"]}
        for column in entry.figures:
            if column in known and (scales == "single" or column not in _SINGLE_SCALE):
                ours[column] = known[column] * (100 if column in PERCENT else 1)
    return Row(entry, run, ours, differences(entry, run.spec, run.data), run.missing)


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
