"""A small search as a user writes it, and its trials as the service shows them."""

from __future__ import annotations

from typing import Any

from segfleet.spec.kinds import SearchSpec
from segfleet.spec.resolve import resolve_spec


def search_document(**changes: Any) -> dict[str, Any]:
    """A search over patch size and crop with no impossible combination."""
    return {
        "kind": "search",
        "name": "patches",
        "base": {
            "recipe": "camvid",
            "data": {"shards": "/data/camvid"},
            "model": {"variant": "seg-ti-mask/16", "pretrained": False},
            "train": {"steps": 40, "crop": 64, "global_batch": 4, "validate_every": 10},
        },
        "space": {"model.patch_size": [8, 16, 32], "train.crop": [64, 96]},
        **changes,
    }


def search_spec(**changes: Any) -> SearchSpec:
    """The same, resolved."""
    spec = resolve_spec(search_document(**changes))
    assert isinstance(spec, SearchSpec)
    return spec


def recorded(number: int, params: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A trial's document."""
    return {
        "number": number,
        "kind": "trial",
        "params": params or {},
        "state": "succeeded",
        "why": "",
        "step": 40,
        "num_steps": 40,
        "reports": [],
        "best_value": None,
        "best_step": None,
        "parameters": None,
        "images_per_s": None,
        "peak_memory_mib": None,
        "worker_seconds": 0.0,
        "checkpoint": None,
        "mlflow_run": None,
        "attempt": 1,
        **changes,
    }
