"""Routes of trying a model: a form for a picture, and what the model makes of it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import RedirectResponse, Response

from segfleet.errors import DataError, ModelError, TryBusyError
from segfleet.server import problems
from segfleet.server.model_schemas import ModelName
from segfleet.server.rights import IdentityArg
from segfleet.server.services import Services, ServicesArg
from segfleet.tryout import child
from segfleet.tryout.desk import Try
from segfleet.web.frame import fragment, page, render
from segfleet.web.model_routes import VERSION, Chosen
from segfleet.web.visitors import FormArg, PictureArg

router = APIRouter()

TryId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{22}$", description="of the try")]


@router.get("/models/{name}/tries")
def try_page(request: Request, name: ModelName, services: ServicesArg, version: Chosen = None) -> Response:
    """The form."""
    return _page(request, services, name, version)


@router.post("/models/{name}/tries")
def begin(
    request: Request, name: ModelName, form: FormArg, picture: PictureArg, services: ServicesArg, caller: IdentityArg
) -> Response:
    """Try the model on a picture, and go on to its page; the form again if that cannot be."""
    version = form.get("version", "")
    if not VERSION.fullmatch(version):
        raise ModelError(f"{version[:40]!r} is no version of {name!r}")
    try:
        try_id = services.tries.begin(name, version, picture, caller.user)
    except (DataError, TryBusyError) as error:
        return _page(request, services, name, version, str(error), problems.status_of(error))
    return RedirectResponse(f"/models/{name}/tries/{try_id}", HTTPStatus.SEE_OTHER)


@router.get("/models/{name}/tries/{try_id}")
def result_page(
    request: Request, name: ModelName, try_id: TryId, services: ServicesArg, caller: IdentityArg
) -> Response:
    """How far it is, and what came out."""
    one = services.tries.get(try_id, caller.user)
    return _page(request, services, name, one.version, one=one)


@router.get("/models/{name}/tries/{try_id}/live")
def result_part(request: Request, try_id: TryId, services: ServicesArg, caller: IdentityArg) -> Response:
    """The part of the page that changes."""
    return fragment(request, render("try_result.html", _values(services, services.tries.get(try_id, caller.user))))


@router.get("/models/{name}/tries/{try_id}/overlay")
def overlay(name: ModelName, try_id: TryId, services: ServicesArg, caller: IdentityArg) -> Response:
    """The picture with the classes' colours; no browser keeps it."""
    prediction = services.tries.get(try_id, caller.user).prediction
    if prediction is None:
        raise ModelError(f"there is no prediction of {name!r} yet")
    return Response(prediction.overlay, media_type="image/png")


def _page(
    request: Request,
    services: Services,
    name: str,
    version: str | None,
    trouble: str = "",
    answer: HTTPStatus = HTTPStatus.OK,
    one: Try | None = None,
) -> Response:
    values: dict[str, Any] = {} if one is None else _values(services, one)
    return page(
        request,
        "try.html",
        answer,
        model=services.registry.model(name),
        version=version,
        trouble=trouble,
        why_not=child.why_not(),
        most_bytes=child.MAX_PICTURE_BYTES,
        most_megapixels=child.MAX_MEGAPIXELS,
        **({"one": None} | values),
    )


def _values(services: Services, one: Try) -> dict[str, Any]:
    shares = () if one.prediction is None else sorted(one.prediction.shares.items(), key=lambda item: -item[1])
    return {"one": one, "shares": shares, "now": services.queue.clock()}
