"""Routes of the model registry: reading, and versions of models that were brought along (jobs: attempts)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from segfleet.archive import pack
from segfleet.registry.card import PICTURES, write_card
from segfleet.registry.registration import Registration, of_content
from segfleet.server.model_schemas import (
    ModelAnswer,
    ModelName,
    ModelRef,
    ModelsAnswer,
    ModelVersionAnswer,
    NewModelName,
    VersionAnswer,
    VersionBody,
)
from segfleet.server.promotion_routes import project_of
from segfleet.server.rights import IdentityArg
from segfleet.server.services import ServicesArg
from segfleet.wire import DIGEST

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(services: ServicesArg) -> ModelsAnswer:
    """Registered models."""
    return ModelsAnswer.model_validate({"models": services.registry.models()})


@router.get("/{name}")
def show_model(name: ModelName, services: ServicesArg) -> ModelAnswer:
    """A registered model with its versions."""
    return ModelAnswer.model_validate(services.registry.model(name))


@router.post("/{name}/versions")
def add_version(name: NewModelName, body: VersionBody, services: ServicesArg, caller: IdentityArg) -> VersionAnswer:
    """Make a version of a logged model, once for each content; if an alias is given, promote the version to it."""
    project = None if body.alias is None else project_of(caller, None)
    version = services.registry.register(
        Registration(
            name=name,
            run_id=body.run_id,
            model_uri=body.model_uri,
            identity=of_content(body.content_digest),
            metrics=body.metrics,
            tags=body.tags,
        )
    )
    if project is None or body.alias is None:
        return VersionAnswer(name=name, version=version, alias=None, promotion=None)
    return VersionAnswer.of(services.promotions.ask(name, body.alias, version, who=caller.user, project=project))


@router.get("/{name}/{ref}")
def show_version(name: ModelName, ref: ModelRef, services: ServicesArg) -> ModelVersionAnswer:
    """One version: `ref` is its number or @ALIAS."""
    return ModelVersionAnswer.model_validate(services.registry.version(name, ref))


@router.get(
    "/{name}/{ref}/archive",
    response_class=FileResponse,
    responses={200: {"content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}}},
)
def archive(name: ModelName, ref: ModelRef, services: ServicesArg) -> FileResponse:
    """The files of a version with its model card, as an uncompressed tar; Repr-Digest holds its SHA-256."""
    work = tempfile.TemporaryDirectory(prefix="segfleet-archive-")
    try:
        fetched, tar = Path(work.name) / "fetched", Path(work.name) / "archive.tar"
        fetched.mkdir()
        version = services.registry.version(name, ref)
        files = services.registry.fetch(name, version["version"], fetched)
        services.registry.fetch_pictures(version, files / PICTURES)
        write_card(files, version)
        with tar.open("wb") as out:
            digest = pack(files, out)
    except BaseException:
        work.cleanup()
        raise
    # With a length known beforehand, the client can tell an answer that broke off from a whole one.
    return FileResponse(
        tar, media_type="application/x-tar", headers={DIGEST: digest}, background=BackgroundTask(work.cleanup)
    )
