"""A checkpoint of other code as a model of ours: its classes, its windows, and the digest that it is known by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segfleet.errors import CheckpointError, DataError, SettingsError
from segfleet_models.convert import Imported
from segfleet_models.convert_mmseg import load_mmseg
from segfleet_models.convert_reference import load_reference
from segfleet_models.inference import WindowConfig
from segfleet_pipelines.datasets.class_table import ClassFile, class_table, known_tables, own_palette, read_classes

FORMATS: dict[str, Callable[[Path], Imported]] = {"reference": load_reference, "mmseg": load_mmseg}
_IGNORE_INDEX = 255


@dataclass(frozen=True, slots=True)
class Classes:
    """Names and colours (RGB, 0..255) in label order, and where they are from."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    origin: str


def read_checkpoint(format_: str, path: Path) -> Imported:
    """Read and convert a checkpoint.

    Raises:
        CheckpointError: it cannot be read safely, or is no Segmenter of that format; every key at fault is listed.
    """
    try:
        return FORMATS[format_](path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def with_windows(imported: Imported, window: int | None, stride: int | None, short_side: int | None) -> Imported:
    """Other windows than the checkpoint's own, where given.

    Raises:
        SettingsError: windows of that stride would leave gaps.
    """
    given = {"window": window, "stride": stride, "short_side": short_side}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    said = changes.keys() | ({"window"} if "stride" in changes else set())
    assumed = {what: text for what, text in imported.assumed.items() if what not in said}
    changed = replace(imported, **changes, assumed=assumed)
    try:
        window_of(changed)
    except ValueError as error:
        raise SettingsError(f"{error}; see --window, --stride and --short-side") from error
    return changed


def window_of(imported: Imported) -> WindowConfig:
    """How its code evaluates it, single scale.

    Raises:
        ValueError: windows would leave gaps.
    """
    return WindowConfig(imported.window, imported.stride, imported.short_side, protocol=imported.protocol)


def classes_of(imported: Imported, given: str | None = None) -> Classes:
    """The classes that are given, or the checkpoint's own, or those of the dataset it names.

    The names of the dataset are ours: the reference's own list for Pascal Context is in another order than the labels.

    Args:
        imported: The checkpoint.
        given: A known dataset, or a file like a `folder` dataset's classes.yaml.

    Raises:
        DataError: nobody knows the classes, or there are as many others as the model has.
    """
    classes = _found_classes(imported, given)
    if len(classes.names) != imported.config.num_classes:
        raise DataError(
            f"the model scores {imported.config.num_classes} classes, but {classes.origin} has {len(classes.names)}; "
            "give the right table with --classes"
        )
    return classes


def _found_classes(imported: Imported, given: str | None) -> Classes:
    if given is not None:
        return _of_table(class_table(given), given) if given in known_tables() else _of_file(given)
    if imported.class_names is not None:
        names = imported.class_names
        if len(set(names)) < len(names) or not all(name.isprintable() for name in names):
            raise DataError("the checkpoint's class names are not distinct plain text; give them with --classes FILE")
        colours = [value for colour in imported.palette or () for value in colour]
        fits = len(imported.palette or ()) == len(names) and all(0 <= value <= 255 for value in colours)
        return Classes(names, (imported.palette if fits else None) or own_palette(len(names)), "the checkpoint")
    if imported.dataset in known_tables():
        return _of_table(class_table(imported.dataset), imported.dataset)
    raise DataError(
        "the checkpoint does not say its classes; give them with --classes FILE (names: [...], in label order) or "
        f"--classes {'|'.join(known_tables())}"
    )


def _of_file(path: str) -> Classes:
    if not Path(path).is_file():
        raise DataError(f"--classes {path!r} is neither a file nor one of {', '.join(known_tables())}")
    return _of_table(read_classes(Path(path)), path)


def _of_table(table: ClassFile, origin: str) -> Classes:
    return Classes(tuple(table.names), table.palette, origin)


def served_config(imported: Imported, classes: Classes) -> dict[str, Any]:
    """What `served_model` needs to know beside the weights."""
    return {
        "model": imported.config.to_dict(),
        "class_names": list(classes.names),
        "palette": [list(colour) for colour in classes.palette],
        "ignore_index": _IGNORE_INDEX,
        "window": asdict(window_of(imported)),
        "scores": {},
    }


def content_digest(weights: Path, config: Mapping[str, Any]) -> str:
    """SHA-256 of weights and configuration: what is answered by the model depends on nothing else."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def taken_over(imported: Imported, classes: Classes) -> dict[str, Any]:
    """What a person wants to know of an import, as plain data."""
    config = imported.config
    return {
        "backbone": config.backbone,
        "patch_size": config.patch_size,
        "decoder": config.decoder,
        "classes": len(classes.names),
        "class_names": list(classes.names),
        "classes_from": classes.origin,
        "mean": config.mean,
        "std": config.std,
        "layer_norm_eps": config.layer_norm_eps,
        "position_mode": config.position_mode,
        "stored_size": config.img_size,
        "window": asdict(window_of(imported)),
        "tensors": len(imported.state),
        "left_out": list(imported.left_out),
        "assumed": list(imported.assumed.values()),
    }
