"""A pulled model version as a model, without MLflow: none of its code is run, only its two data files are read."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segfleet.client import Client
from segfleet.errors import ModelError
from segfleet_models.stored_model import StoredModel, load_stored

_DESCRIPTION = "MLmodel"
_ORIGIN = "registered_model_meta"


@dataclass(frozen=True)
class RegisteredModel:
    """A model version.

    Attributes:
        stored: The model itself, its classes, colours and windows.
        source: NAME/VERSION; the folder's name if it was not pulled from a registry.
        run_id: MLflow's run that made it; empty if unknown.
    """

    stored: StoredModel
    source: str
    run_id: str


def load_registered(folder: Path) -> RegisteredModel:
    """Load a pulled model version.

    Args:
        folder: As `segfleet models pull` or MLflow's download makes it.

    Raises:
        ModelError: the folder holds no whole model of this project.
    """
    description = _document(folder / _DESCRIPTION, folder)
    try:
        artifacts = description["flavors"]["python_function"]["artifacts"]
        files = [_inside(folder, artifacts[name]["path"]) for name in ("config", "weights")]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"the model in {str(folder)!r} was not made by segfleet: no {error} in {_DESCRIPTION}"
        ) from error
    try:
        stored = load_stored(*files)
    except ValueError as error:
        raise ModelError(f"the model in {str(folder)!r} cannot be loaded: {error}") from error
    origin = _document(folder / _ORIGIN, folder) if (folder / _ORIGIN).is_file() else {}
    name, version = origin.get("model_name"), origin.get("model_version")
    source = f"{name}/{version}" if name and version else folder.resolve().name
    return RegisteredModel(stored, source, str(description.get("run_id") or ""))


def fetch_registered(reference: str) -> RegisteredModel:
    """A model by NAME@ALIAS, NAME/VERSION or the folder of a pulled one.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ServiceError: the service cannot be reached.
    """
    folder = Path(reference)
    if folder.is_dir():
        return load_registered(folder)
    with tempfile.TemporaryDirectory(prefix="segfleet-model-") as scratch, Client() as client:
        return load_registered(client.pull(reference, Path(scratch) / "model"))


def _document(path: Path, folder: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"the model in {str(folder)!r} cannot be loaded: {path.name}: {error}") from error
    return document if isinstance(document, dict) else {}


def _inside(folder: Path, name: object) -> Path:
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(f"the model in {str(folder)!r} points to {str(name)!r} outside of it")
    return path
