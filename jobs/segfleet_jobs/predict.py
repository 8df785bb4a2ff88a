"""`python -m segfleet_jobs.predict`: label maps and overlays of pictures, by any registered model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segfleet.cli.output import clean
from segfleet.errors import DataError, ModelError, SegfleetError, SettingsError
from segfleet_jobs.pictures import encode_png
from segfleet_jobs.prediction_files import (
    MODEL_KEYWORD,
    ProbabilityFile,
    is_done,
    refuse_strangers,
    written_whole,
)
from segfleet_jobs.prediction_inputs import Source, Targets, find_sources, refuse_overwriting, targets_of
from segfleet_jobs.prediction_progress import progress
from segfleet_jobs.registered_model import RegisteredModel, fetch_registered
from segfleet_models.inference import predict, predict_many
from segfleet_pipelines.datasets.cityscapes import export_prediction
from segfleet_pipelines.datasets.class_table import class_table
from segfleet_pipelines.photo import read_photo
from segfleet_pipelines.picture import Labels, Pixels, encode_mask, overlay

# Benchmarks whose evaluators want other labels than ours, and file names of their own: labels and stem -> name, PNG.
LABEL_IDS: dict[str, Callable[[Pixels, str], tuple[str, bytes]]] = {"cityscapes": export_prediction}
_NO_LABELS: Pixels = np.zeros((1, 1), np.uint8)
MAX_MEGAPIXELS = 200.0
# Pictures whose windows go through the model together: a fifth faster for small ones on a processor, and a large one
# gains nothing and would be held in memory beside others.
_PICTURES_AT_ONCE, _PIXELS_AT_ONCE = 4, 4_000_000


@dataclass(frozen=True)
class Wishes:
    """What is wanted of each picture.

    Attributes:
        out: Folder for the results.
        overlay: Write the picture blended with the classes' colours.
        probabilities: Write all classes' probabilities.
        skip_existing: Leave out pictures whose results by this model are there.
        max_pixels: Refuse larger pictures.
        label_ids: One of LABEL_IDS, to write `labelIds/NAME.png` besides, as that benchmark's evaluator wants it.
    """

    out: Path
    overlay: bool = True
    probabilities: bool = False
    skip_existing: bool = False
    max_pixels: int = int(MAX_MEGAPIXELS * 1e6)
    label_ids: str | None = None


@dataclass
class Outcome:
    """What became of the pictures: what was written of each, those that were done before, and those that failed.

    Attributes:
        colors: `#rrggbb` of each class that overlays show, by name; the first one's where several have a name.
    """

    predictions: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    colors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    source: Source
    targets: Targets
    pixels: Pixels


class Predictor:
    """Predicts pictures with one model, and writes the results.

    Args:
        registered: The model; moved to `device`.
        wishes: What to write.
        device: Where to compute.

    Raises:
        DataError: the model's classes are not those of the benchmark that label ids are wanted for.
    """

    def __init__(self, registered: RegisteredModel, wishes: Wishes, device: torch.device | str = "cpu") -> None:
        self._stored, self._wishes = registered.stored, wishes
        self._name = f"{registered.source} {registered.run_id}".strip()
        self._model = self._stored.model.to(device)
        wanted = wishes.label_ids
        if wanted and self._stored.class_names != tuple(class_table(wanted).names):
            raise DataError(f"the model's classes are not those of {wanted}; leave --label-ids out")
        named = zip(reversed(self._stored.class_names), reversed(self._stored.palette), strict=True)
        self.outcome = Outcome(colors={name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in named})

    def run(self, sources: Sequence[Source], tell: Callable[[int], None]) -> Outcome:
        """Predict all that can be; what cannot be read is noted, and the rest goes on.

        Args:
            sources: The pictures.
            tell: Called with the number of pictures that are through.

        Raises:
            DataError: results would overwrite something, or cannot be written.
        """
        targets = [self._targets(source) for source in sources]
        refuse_overwriting(sources, targets)
        for group in _groups(self._readable(zip(sources, targets, strict=True))):
            self._predict(group)
            group.clear()  # before the next pictures are read: one large picture at a time
            tell(self._num_done())
        tell(self._num_done())
        return self.outcome

    def _num_done(self) -> int:
        return len(self.outcome.predictions) + len(self.outcome.skipped) + len(self.outcome.failed)

    def _targets(self, source: Source) -> Targets:
        wishes = self._wishes
        return targets_of(
            source,
            wishes.out,
            overlay=wishes.overlay,
            probabilities=wishes.probabilities,
            label_ids=self._label_ids_name(source),
        )

    def _label_ids_name(self, source: Source) -> str | None:
        if self._wishes.label_ids is None:
            return None
        try:
            return LABEL_IDS[self._wishes.label_ids](_NO_LABELS, source.path.stem)[0]
        except DataError:
            return None  # a picture of another name, which fails when its turn comes

    def _readable(self, pairs: Iterable[tuple[Source, Targets]]) -> Iterator[_Work]:
        for source, targets in pairs:
            if self._wishes.skip_existing and is_done(targets, self._name):
                self.outcome.skipped.append(str(source.path))
                continue
            try:
                refuse_strangers(targets)
                if self._wishes.label_ids:
                    LABEL_IDS[self._wishes.label_ids](_NO_LABELS, source.path.stem)  # refuses other names
                yield _Work(source, targets, read_photo(source.path, self._wishes.max_pixels))
            except DataError as error:
                self.outcome.failed.append({"image": str(source.path), "reason": str(error)})

    def _predict(self, group: Sequence[_Work]) -> None:
        if self._wishes.probabilities:
            for work in group:
                self._predict_probabilities(work)
        else:
            images = [work.pixels for work in group]
            for work, labels in zip(group, predict_many(self._model, images, self._stored.window), strict=True):
                self._write(work, _plain(labels))

    def _predict_probabilities(self, work: _Work) -> None:
        assert work.targets.probabilities is not None
        with written_whole(work.targets.probabilities) as place:
            file = ProbabilityFile(place, self._model.num_classes, work.pixels.shape[:2])
            labels = predict(self._model, work.pixels, self._stored.window, take_probabilities=file.take)
            file.close()
            self._write(work, _plain(labels))

    def _write(self, work: _Work, labels: Labels) -> None:
        targets, palette = work.targets, self._stored.palette
        entry: dict[str, Any] = {"image": str(work.source.path), "mask": str(targets.mask)}
        if self._wishes.label_ids and targets.label_ids is not None:
            _, data = LABEL_IDS[self._wishes.label_ids](labels.astype(np.uint8), work.source.path.stem)
            _write_bytes(targets.label_ids, data)
            entry["label_ids"] = str(targets.label_ids)
        # The mask first: it is by the mask that the other files are known to be ours.
        _write_bytes(targets.mask, encode_mask(labels, palette, {MODEL_KEYWORD: self._name}))
        if targets.overlay is not None:
            _write_bytes(targets.overlay, encode_png(overlay(work.pixels, labels, palette)))
            entry["overlay"] = str(targets.overlay)
        if targets.probabilities is not None:
            entry["probabilities"] = str(targets.probabilities)
        entry["shares"] = _shares(labels, self._stored.class_names)
        self.outcome.predictions.append(entry)


def _plain(labels: torch.Tensor) -> Labels:
    array: Labels = labels.cpu().numpy()
    return array if array.dtype == np.uint8 else array.astype(np.uint16)


def _shares(labels: Labels, names: Sequence[str]) -> dict[str, float]:
    """Share of the pixels of each class that is there; classes of one name count together."""
    counts = np.zeros(len(names), np.int64)
    for rows in np.array_split(labels, max(1, labels.size >> 22)):  # counting makes 64-bit numbers of them
        counts += np.bincount(rows.ravel(), minlength=len(names))
    shares: dict[str, float] = {}
    for name, count in zip(names, counts.tolist(), strict=True):
        if count:
            shares[name] = shares.get(name, 0.0) + count / labels.size
    return {name: round(share, 4) for name, share in shares.items()}


def _write_bytes(target: Path, data: bytes) -> None:
    with written_whole(target) as place:
        place.write_bytes(data)


def _groups(works: Iterable[_Work]) -> Iterator[list[_Work]]:
    """Pictures that are predicted together."""
    group: list[_Work] = []
    num_pixels = 0
    for work in works:
        size = work.pixels.shape[0] * work.pixels.shape[1]
        if group and num_pixels + size > _PIXELS_AT_ONCE:
            yield group
            group, num_pixels = [], 0
        group, num_pixels = [*group, work], num_pixels + size
        del work
        if len(group) == _PICTURES_AT_ONCE or num_pixels >= _PIXELS_AT_ONCE:
            yield group
            group, num_pixels = [], 0
    if group:
        yield group


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segfleet predict", description="Masks and overlays of pictures.")
    parser.add_argument("--model", required=True, help="NAME@ALIAS, NAME/VERSION, or the folder of a pulled model")
    parser.add_argument(
        "images", nargs="+", help="pictures, folders of pictures, or quoted patterns (** for any depth)"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--no-overlay", action="store_true", help="write masks only")
    parser.add_argument("--probabilities", action="store_true", help="write STEM-probabilities.npy besides")
    parser.add_argument("--skip-existing", action="store_true", help="go on where an earlier run ended")
    parser.add_argument("--max-megapixels", type=_megapixels, default=MAX_MEGAPIXELS, help="refuse larger pictures")
    parser.add_argument("--label-ids", choices=LABEL_IDS, help="write labelIds/ for this benchmark's evaluator besides")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON document")
    return parser


def _megapixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of megapixels; write for instance 400")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, 2 if there is no such model, or 1; a failure's reason is on stderr."""
    options = _parser().parse_args(arguments)
    wishes = Wishes(
        out=options.out,
        overlay=not options.no_overlay,
        probabilities=options.probabilities,
        skip_existing=options.skip_existing,
        max_pixels=int(options.max_megapixels * 1e6),
        label_ids=options.label_ids,
    )
    try:
        sources = find_sources(options.images, wishes.out)
        predictor = Predictor(fetch_registered(options.model), wishes, "cuda" if torch.cuda.is_available() else "cpu")
        with progress("predicting", len(sources)) as tell:
            outcome = predictor.run(sources, tell)
    except SegfleetError as error:
        print(f"error: {clean(error)}", file=sys.stderr)
        return 2 if isinstance(error, ModelError | SettingsError) else 1
    except KeyboardInterrupt:
        print("error: interrupted; --skip-existing goes on where this run ended", file=sys.stderr)
        return 1
    _show(outcome, as_json=options.json)
    return int(bool(outcome.failed))


def _show(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(vars(outcome)))
    else:
        for entry in outcome.predictions:
            largest = sorted(entry["shares"].items(), key=lambda item: -item[1])[:4]
            told = ", ".join(f"{name} {share:.0%}" for name, share in largest)
            print(clean(f"{entry.get('overlay', entry['mask'])}: {told}"))
    if outcome.skipped:
        print(f"{len(outcome.skipped)} pictures were done before", file=sys.stderr)
    for failure in outcome.failed:
        print(clean(f"error: picture {failure['image']!r}: {failure['reason']}"), file=sys.stderr)
    if outcome.failed:
        total = len(outcome.failed) + len(outcome.predictions) + len(outcome.skipped)
        print(f"error: {len(outcome.failed)} of {total} pictures failed", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
