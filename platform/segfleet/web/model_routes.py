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
from segfleet.web.frame import fragment, page, render
from segfleet.web.visitors import FormArg, may

router = APIRouter()

_ALIAS, VERSION = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[1-9][0-9]{0,8}")
_PROMOTIONS = 20

_NUMBER = Query(pattern=f"^{VERSION.pattern}$", description="number of a version")
Chosen = Annotated[str | None, _NUMBER]
VersionName = Annotated[str, _NUMBER]


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
        **({} if a is None or b is None else _sheets(request.app.state.curves, versions, (a, b))),
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


_NO_SHEET = {"loading": "Asking MLflow …", "away": "MLflow does not answer.", "there": "Its run has no pictures."}


def _sheets(curves: Curves, versions: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> dict[str, Any]:
    """(version, job, name of its latest sheet of sample predictions, why there is none), and whether more may come.

    Sheets hold the same samples where the dataset is the same.
    """
    jobs = {version["version"]: version["job"] for version in versions}
    found, is_asking = [], False
    for number in wanted:
        learning = curves.of(jobs[number]) if jobs.get(number) else Learning("none")
        is_asking = is_asking or learning.state == "loading"
        pictures = learning.found["pictures"] if learning.found else []
        trouble = _NO_SHEET.get(learning.state, "No job of this service made it.")
        found.append((number, jobs.get(number), pictures[-1] if pictures else "", trouble))
    return {"sheets": found, "is_asking": is_asking}


@router.get("/models/{name}/sheets")
def sheets(request: Request, name: ModelName, services: ServicesArg, a: VersionName, b: VersionName) -> Response:
    """The sample predictions of two versions alone, for a page that waits for them."""
    versions = services.registry.model(name)["versions"]
    return fragment(request, render("model_sheets.html", _sheets(request.app.state.curves, versions, (a, b))))


def _compared(name: str, versions: Sequence[Mapping[str, Any]], a: str, b: str) -> list[tuple[str, str, str, str]]:
    found = {version["version"]: version for version in versions}
    for wanted in (a, b):
        if wanted not in found:
            raise ModelError(f"model {name!r} has no version {wanted}")
    return list(comparison_rows(comparison(found[a], found[b])))
