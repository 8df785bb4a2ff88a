"""What every page asks of its visitor besides the rights: that a change comes from a page of ours."""

from __future__ import annotations

import hmac
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from segfleet.access.roles import Identity, Role
from segfleet.access.sessions import form_key
from segfleet.errors import AccessError
from segfleet.server.rights import RIGHTS
from segfleet.web.overview import Overview
from segfleet.web.paths import SIGN_IN, UPLOAD
from segfleet.web.uploads import split_upload

_MOST_FIELDS = 50
_KEY_HEADER = "X-Form-Key"


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a posted form; a picture in it is kept for `PictureArg`."""
    if request.method in ("GET", "HEAD"):
        return {}  # waiting for a body that never comes would make a failure of every visitor who leaves
    body, media_type = await request.body(), request.headers.get("content-type", "")
    # In a thread: a long form takes a tenth of a second, in which all others would wait.
    if media_type.lower().startswith(UPLOAD):
        fields, request.state.picture = await run_in_threadpool(split_upload, media_type, body)
        return fields
    return await run_in_threadpool(_fields, body)


def _fields(body: bytes) -> dict[str, str]:
    text = body.decode("utf-8", errors="replace")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError as error:
        raise AccessError(f"a form has at most {_MOST_FIELDS} fields") from error


FormArg = Annotated[dict[str, str], Depends(read_form)]


def require_own_page(request: Request, form: FormArg) -> None:
    """Refuse a change that another site's page could have asked for.

    Raises:
        AccessError: it comes from elsewhere, or without the key of the session's forms.
    """
    if request.method in ("GET", "HEAD"):
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    if (site is None and origin is None) or site not in (None, "same-origin") or origin not in (None, own):
        raise AccessError("this request does not come from a page of this service; open the page and try again")
    if request.url.path == SIGN_IN:
        return
    given = request.headers.get(_KEY_HEADER) or form.get("key", "")
    if not hmac.compare_digest(given.encode(), form_key(request.state.session).encode()):
        raise AccessError("this form is of an earlier session; load the page again")


def may(caller: Identity, route: tuple[str, str], owner: str | None = None) -> bool:
    """Whether a page shows somebody what the route would let them do; the route itself decides."""
    right = RIGHTS[route]
    if right is None or not caller.role.covers(right.role):
        return right is None
    return not right.of_own_job or caller.role.covers(Role.OPERATOR) or owner == caller.user


def _overview(request: Request) -> Any:
    return request.app.state.overview


def _picture(request: Request, _form: FormArg) -> bytes:
    return getattr(request.state, "picture", b"")


PictureArg = Annotated[bytes, Depends(_picture)]
OverviewArg = Annotated[Overview, Depends(_overview)]
