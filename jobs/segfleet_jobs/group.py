"""The group of workers of an attempt; the only module that knows Ray Train.

Ray places the workers, forms the process group and restarts all of it when a worker dies: then the body of the job runs
anew on every worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
import torch
from ray.train import Checkpoint as RayCheckpoint
from ray.train import CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from segfleet.spec.sections import ResourceSpec
from segfleet_jobs.attempt import AttemptClient, Credentials, Grant, Heart, exit_process
from segfleet_jobs.failure import classify
from segfleet_jobs.ranks import Ranks

GROUP_RESTARTS = 3
START_FAILURES = 3
COLLECTIVE_TIMEOUT_S = 1800

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Voice:
    """How rank 0 speaks for the group: at once by the client, with the next heartbeat by the heart."""

    client: AttemptClient
    heart: Heart


@dataclass(frozen=True, slots=True)
class OneOfMany:
    """A group that is not the attempt's only one: its end is not the attempt's end, and nobody but its caller retries.

    Attributes:
        name: Ray's name of the run; a used name would go on with what the earlier run has left.
        storage: Ray's folder, shared by all workers.
        callbacks: Hear what the workers report.
    """

    name: str
    storage: str
    callbacks: Sequence[UserCallback] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One worker of the group.

    Attributes:
        ranks: Who it is.
        voice: Rank 0's; None on the others.
    """

    ranks: Ranks
    voice: Voice | None


def attempt_folder(grant: Grant) -> Path:
    """Ray's own folder of this attempt, on storage that all workers share: checkpoints it is told of lie inside."""
    return Path(grant.storage) / grant.credentials.attempt_id


def run_group(
    grant: Grant,
    resources: ResourceSpec,
    body: Callable[[Member, Mapping[str, Any]], T],
    config: Mapping[str, Any],
    one: OneOfMany | None = None,
) -> T:
    """Run the body of a job on every worker.

    Args:
        grant: Of the attempt.
        resources: What each worker needs. An attempt's only group has all workers of the grant; one of many has the
            fewest that will do.
        body: Importable by its name, as it runs in other processes.
        config: The same for each worker; plain data.
        one: Given where the attempt has other groups too.

    Returns:
        What rank 0's body returned.

    Raises:
        TrainingFailedError: the group failed; `classify` knows how.
    """
    trainer = TorchTrainer(
        _member,
        train_loop_config={
            "body": body,
            "config": dict(config),
            "cpus": resources.cpus_per_worker,
            "credentials": grant.credentials,
            "is_alone": one is None,
        },
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=resources.min_workers if one else grant.workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
        ),
        run_config=RunConfig(
            name=one.name if one else grant.credentials.attempt_id,
            storage_path=one.storage if one else grant.storage,
            failure_config=FailureConfig(
                max_failures=0 if one else GROUP_RESTARTS, controller_failure_limit=START_FAILURES
            ),
            callbacks=list(one.callbacks) if one else [],
        ),
    )
    return cast(T, trainer.fit().return_value)


def _member(settings: dict[str, Any]) -> Any:
    """One rank, inside a Ray Train worker."""
    context, device = ray.train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings["cpus"])
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    body, config = settings["body"], settings["config"]
    credentials: Credentials = settings["credentials"]
    client = AttemptClient(credentials)
    try:
        if not ranks.is_main:
            return body(Member(ranks, None), config)
        with Heart(client, exit_process) as heart:
            return body(Member(ranks, Voice(client, heart)), config)
    except Exception as error:
        # What another try of the same group cannot change ends the attempt here, in the words of the rank that knows.
        failure_class, message = classify(error)
        if failure_class != "infra" and settings["is_alone"]:
            client.fail(failure_class, f"rank {ranks.rank}: {message}")
        raise
    finally:
        client.close()


def report(metrics: dict[str, Any], checkpoint: str | None) -> None:
    """Tell Ray Train, on every rank; the files are in place already, so Ray only notes where."""
    ray.train.report(
        metrics,
        checkpoint=RayCheckpoint.from_directory(checkpoint) if checkpoint else None,
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )
