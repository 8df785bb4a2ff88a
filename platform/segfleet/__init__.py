"""segfleet: a training service for semantic segmentation with a durable job queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segfleet.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # Lazy: jobs and pipelines import segfleet.errors without paying for HTTP.
    if name == "Client":
        from segfleet.client import Client

        return Client
    raise AttributeError(f"module 'segfleet' has no attribute {name!r}")
