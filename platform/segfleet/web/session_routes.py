"""Routes of the sign-in and the page's own files."""

from __future__ import annotations

from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from segfleet.access import audit
from segfleet.access.tokens import id_of
from segfleet.errors import UnauthorizedError
from segfleet.server.rights import AccessArg
from segfleet.web.frame import page
from segfleet.web.paths import SIGN_IN, cookie_name
from segfleet.web.visitors import FormArg

router = APIRouter()

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FILES = {
    file.name: (file.read_bytes(), _TYPES[file.name.rpartition(".")[2]])
    for file in files("segfleet.web").joinpath("static").iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}


@router.get("/static/{name}")
def static(name: str) -> Response:
    """Style, script and icon."""
    if name not in _FILES:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    content, media_type = _FILES[name]
    # Asked for anew after a minute, so that no page runs with the script of an earlier version for long.
    return Response(content, headers={"Cache-Control": "private, max-age=60"}, media_type=media_type)


@router.get(SIGN_IN)
def sign_in_page(request: Request) -> Response:
    """The form for the token."""
    return page(request, "sign_in.html", problem="")


@router.post(SIGN_IN)
def sign_in(request: Request, form: FormArg, access: AccessArg) -> Response:
    """Begin a session for whoever shows a valid token."""
    token = form.get("token", "").strip()
    try:
        identity = access.identify(token)
    except UnauthorizedError as error:
        if not request.state.may_fail():
            problem = "Too many sign-ins have failed from your address; wait a minute."
            return page(request, "sign_in.html", HTTPStatus.TOO_MANY_REQUESTS, problem=problem)
        problem = str(error) if id_of(token) else "this is not a token of this service"
        return page(request, "sign_in.html", HTTPStatus.UNAUTHORIZED, problem=problem[0].upper() + problem[1:] + ".")
    address = request.client.host if request.client else "unknown"
    entry = audit.Entry(access.now(), identity.user, identity.token_id, address, f"POST {SIGN_IN}", "")
    with audit.recording(entry):
        session_id = access.sessions.open(identity, token)
    answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    scheme = request.url.scheme
    answer.set_cookie(
        cookie_name(scheme), session_id, path="/", secure=scheme == "https", httponly=True, samesite="strict"
    )
    return answer


@router.post("/sign-out")
def sign_out(request: Request, access: AccessArg) -> Response:
    """End the session."""
    access.sessions.close(request.state.session)
    answer = RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER)
    scheme = request.url.scheme
    answer.delete_cookie(cookie_name(scheme), path="/", secure=scheme == "https", httponly=True, samesite="strict")
    return answer
