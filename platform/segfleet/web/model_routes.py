"""Routes of the models' pages: what there is, where it comes from, and who gets an alias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from segfleet.cli.model_text import comparison, comparison_rows, figures_text, gate_text, lineage
from segfleet.errors import ModelError, Problem, SpecError
from segfleet.server import promotion_routes
from segfleet.server.model_schemas import ModelName, PromoteBody
from segfleet.server.rights import IdentityArg
from segfleet.server.services import ServicesArg
from segfleet.web.curves import Curves, Learning
from segfleet.web.frame import page
from segfleet.web.visitors import FormArg, may

router = APIRouter()

_ALIAS, VERSION = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[1-9][0-9]{0,8}")
_PROMOTIONS = 20

Chosen = Annotated[str | None, Query(pattern=f"^{VERSION.pattern}$", description="number of a version")]


@router.get("/models")
def models_page(request: Request, services: ServicesArg) -> Response:
    """All registered models."""
    models = sorted(services.registry.models(), key=lambda model: -model["updated_at"])
    return page(request, "models.html", models=models, now=services.queue.clock())


@router.get("/models/{name}")
def model_page(
    request: Request,
    name: ModelName,
    services: ServicesArg,
    caller: IdentityArg,
    a: Chosen = None,
    b: Chosen = None,
) -> Response:
    """A model with its versions, its gates and promotions; with `a` and `b`, those two side by side."""
    model = services.registry.model(name)
    versions: Sequence[Mapping[str, Any]] = model["versions"]
    promotions = services.promotions.list(name, _PROMOTIONS)
    return page(
        request,
        "model.html",
        model=model,
        now=services.queue.clock(),
        lineages={version["version"]: lineage(version) for version in versions},
        figures={version["version"]: _figures(version) for version in versions},
        gates=[(gate["alias"], gate_text(gate["rules"])) for gate in services.promotions.gates(name)],
        promotions=[(one, figures_text({"figures": one.figures})) for one in promotions],
        compared=None if a is None or b is None else _compared(name, versions, a, b),
        sheets=[] if a is None or b is None else _sheets(request.app.state.curves, versions, (a, b)),
        a=a,
        b=b,
        may_try=may(caller, ("GET", "/models/{name}/tries")),
        may_promote=may(caller, ("POST", "/models/{name}/promotions")),
    )


@router.post("/models/{name}/promotions")
def promote(name: ModelName, form: FormArg, services: ServicesArg, caller: IdentityArg) -> Response:
    """Want an alias for a version."""
    alias, version = form.get("alias", "").removeprefix("@"), form.get("version", "")
    if not _ALIAS.fullmatch(alias):
        hint = "use small letters, digits, _ and -, such as champion"
        raise SpecError([Problem("alias", f"{alias[:40]!r} cannot be one", hint)], "form")
    if not VERSION.fullmatch(version):
        raise ModelError(f"{version[:40]!r} is no version of {name!r}")
    body = PromoteBody(alias=alias, version=version, project=None)
    promotion_routes.promote(name, body, services, caller, Response())
    return RedirectResponse(f"/models/{name}", HTTPStatus.SEE_OTHER)


def _figures(version: Mapping[str, Any]) -> list[tuple[str, float]]:
    return sorted(version["metrics"].items())


def _sheets(curves: Curves, versions: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> list[tuple[str, str, str]]:
    """(version, job, name of its latest sheet of sample predictions) of those that have one.

    Sheets hold the same samples where the dataset is the same.
    """
    jobs = {version["version"]: version["job"] for version in versions}
    found = []
    for number in wanted:
        learning = curves.of(jobs[number]) if jobs[number] else Learning()
        if learning.found and learning.found["pictures"]:
            found.append((number, jobs[number], learning.found["pictures"][-1]))
    return found


def _compared(name: str, versions: Sequence[Mapping[str, Any]], a: str, b: str) -> list[tuple[str, str, str, str]]:
    found = {version["version"]: version for version in versions}
    for wanted in (a, b):
        if wanted not in found:
            raise ModelError(f"model {name!r} has no version {wanted}")
    return list(comparison_rows(comparison(found[a], found[b])))
