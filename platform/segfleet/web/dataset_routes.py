"""Routes of the datasets' pages: what was prepared, what is in it, and who uses it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from segfleet.errors import ModelError
from segfleet.queue.model import EVERY_JOB
from segfleet.server.services import Services, ServicesArg
from segfleet.web import datasets
from segfleet.web.datasets import Dataset, Inspection
from segfleet.web.frame import fragment, page, render

router = APIRouter()

_USES = 100

DatasetId = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]


@router.get("/datasets")
def datasets_page(request: Request, services: ServicesArg) -> Response:
    """All datasets that jobs have made or read."""
    found = datasets.datasets(services.queue.list(EVERY_JOB, datasets.MOST_JOBS))
    return page(request, "datasets.html", datasets=found, now=services.queue.clock(), most=datasets.MOST_JOBS)


@router.get("/datasets/{dataset_id}")
def dataset_page(request: Request, dataset_id: DatasetId, services: ServicesArg) -> Response:
    """A dataset with its classes, a sheet of pictures, and its jobs."""
    dataset = _known(services, dataset_id)
    uses = dataset.uses[:_USES]
    return page(request, "dataset.html", **_content(request, dataset), uses=uses, now=services.queue.clock())


@router.get("/datasets/{dataset_id}/live")
def dataset_content(request: Request, dataset_id: DatasetId, services: ServicesArg) -> Response:
    """What is in a dataset alone, for a page that waits for it."""
    return fragment(request, render("dataset_content.html", _content(request, _known(services, dataset_id))))


@router.get("/datasets/{dataset_id}/sheet")
def sheet(request: Request, dataset_id: DatasetId, services: ServicesArg) -> Response:
    """The sheet of pictures."""
    dataset = _known(services, dataset_id)
    content = None if dataset.sketch is None else request.app.state.inspections.sheet(dataset.sketch.content_id)
    if content is None:
        raise ModelError("this dataset has no sheet of pictures yet")
    return Response(content, headers={"Cache-Control": "private, max-age=3600"}, media_type="image/png")


def _content(request: Request, dataset: Dataset) -> dict[str, Any]:
    sketch = dataset.sketch
    if sketch is None:
        inspection = Inspection("failed", trouble=dataset.trouble)
    else:
        inspection = request.app.state.inspections.of(dataset.location, sketch.content_id)
    return {"dataset": dataset, "sketch": sketch, "inspection": inspection}


def _known(services: Services, dataset_id: str) -> Dataset:
    found = datasets.dataset(services.queue.list(EVERY_JOB, datasets.MOST_JOBS), dataset_id)
    if found is None:
        raise ModelError(f"none of the latest {datasets.MOST_JOBS} jobs names this dataset")
    return found
