"""Routes of the model registry: reading, and versions of models that were brought along (jobs: attempts)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from segfleet.archive import pack
from segfleet.registry.registration import Registration, of_content
from segfleet.server.schemas import VersionAnswer, VersionBody
from segfleet.server.services import ServicesArg
from segfleet.spec.sections import Name
from segfleet.wire import DIGEST

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(services: ServicesArg) -> dict[str, list[dict[str, Any]]]:
    """Registered models."""
    return {"models": services.registry.models()}


@router.get("/{name}")
def show_model(name: str, services: ServicesArg) -> dict[str, Any]:
    """A registered model with its versions."""
    return services.registry.model(name)


@router.post("/{name}/versions")
def add_version(name: Name, body: VersionBody, services: ServicesArg) -> VersionAnswer:
    """Make a version of a logged model, once for each content, and move the alias to it if one is given."""
    made = services.registry.register(
        Registration(
            name=name,
            alias=body.alias,
            run_id=body.run_id,
            model_uri=body.model_uri,
            identity=of_content(body.content_digest),
            metrics=body.metrics,
            tags=body.tags,
        )
    )
    return VersionAnswer.model_validate(made)


@router.get("/{name}/{ref}")
def show_version(name: str, ref: str, services: ServicesArg) -> dict[str, Any]:
    """One version: `ref` is its number or @ALIAS."""
    return services.registry.version(name, ref)


@router.get("/{name}/{ref}/archive", response_class=FileResponse)
def archive(name: str, ref: str, services: ServicesArg) -> FileResponse:
    """The files of a version as an uncompressed tar; Repr-Digest holds its SHA-256."""
    work = tempfile.TemporaryDirectory(prefix="segfleet-archive-")
    try:
        fetched, tar = Path(work.name) / "fetched", Path(work.name) / "archive.tar"
        fetched.mkdir()
        files = services.registry.fetch(name, ref, fetched)
        with tar.open("wb") as out:
            digest = pack(files, out)
    except BaseException:
        work.cleanup()
        raise
    # With a length known beforehand, the client can tell an answer that broke off from a whole one.
    return FileResponse(
        tar, media_type="application/x-tar", headers={DIGEST: digest}, background=BackgroundTask(work.cleanup)
    )
