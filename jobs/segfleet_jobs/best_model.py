"""The best checkpoint of a training as a version in the model registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segfleet.errors import CheckpointError
from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.attempt import AttemptClient
from segfleet_jobs.checkpoint import load_checkpoint
from segfleet_jobs.checkpoint_store import CheckpointStore, find_step
from segfleet_jobs.logged_model import log_model
from segfleet_jobs.origin import training_tags
from segfleet_jobs.patience import Patience
from segfleet_pipelines.manifest import Manifest

_FIGURES = ("miou", "pixel_accuracy", "mean_accuracy")


def register_best(
    client: AttemptClient,
    spec: TrainSpec,
    manifest: Manifest,
    run_id: str,
    store: CheckpointStore,
    best_step: int,
    tags: Mapping[str, str],
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Log a training's best checkpoint as a model of its run and have the service register it.

    Args:
        client: Of an attempt whose spec says where to.
        spec: Of the training.
        manifest: Of the training data.
        run_id: The training's run.
        store: Where the training's checkpoints lie.
        best_step: Of the checkpoint.
        tags: What else the version says of itself.
        patience: With MLflow.

    Returns:
        The version.

    Raises:
        CheckpointError: the checkpoint is gone or damaged.
        ServiceError: MLflow or the service stayed away, or refuses.
    """
    address = find_step(store, best_step)
    if address is None:
        raise CheckpointError(f"the best checkpoint, of step {best_step}, is gone from {store.home!r}")
    with store.opened(address) as place:
        best = load_checkpoint(place, address=address)
        model_uri = log_model(run_id, place / "model.safetensors", best.meta, spec, manifest, patience)
        of_training = training_tags(spec, place / "model.safetensors")
    tags = {
        "segfleet.content_id": manifest.content_id,
        "segfleet.dataset": manifest.name,
        "segfleet.variant": spec.model.variant or f"{spec.model.backbone}/{spec.model.patch_size}",
        "segfleet.step": str(best_step),
        **of_training,
        **tags,
    }
    metrics = {name: best.meta["scores"][name] for name in _FIGURES}
    return client.register({"run_id": run_id, "model_uri": model_uri, "metrics": metrics, "tags": tags})
