"""The group of workers of an attempt; the only module that knows Ray Train.

Ray places the workers, forms the process group and restarts all of it when a worker dies: then the body of the job runs
anew on every worker. A worker that hangs is ended for that, on whichever machine it is; Ray then sees it die.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segfleet.queue.scheduling.values import Gang, Node
from segfleet.spec.sections import ResourceSpec
from segfleet_jobs.attempt import AttemptClient, Credentials, Grant, Heart, exit_process
from segfleet_jobs.evacuation import Evacuation
from segfleet_jobs.failure import classify
from segfleet_jobs.faults import count_memory_kills, end_process, name_fault, name_memory
from segfleet_jobs.ground import Machine
from segfleet_jobs.pulse import Beater, read_beats
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.watchdog import Beat
from segfleet_jobs.watching import Watcher, is_ended, mark_ended

GROUP_RESTARTS = 3
# Scope of an attempt's only group.
_ALONE = "job"
START_FAILURES = 3
COLLECTIVE_TIMEOUT_S = 1800
HEALTH_CHECK_S = "0.5"
_KILL_S = 30.0
_ASK_S = 10.0

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
        scope: A later group of the same scope takes the place of an earlier one; letters and digits.
        can_yield: Whether the body heeds a request to make way.
        callbacks: Hear what the workers report.
    """

    name: str
    storage: str
    scope: str
    can_yield: bool = True
    callbacks: Sequence[UserCallback] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One worker of the group.

    Attributes:
        ranks: Who it is.
        voice: Rank 0's; None on the others.
        group: Number of its group among those of the attempt and scope, from 1.
    """

    ranks: Ranks
    voice: Voice | None
    group: int = 1


def attempt_folder(grant: Grant) -> Path:
    """Ray's own folder of this attempt, on storage that all workers share: checkpoints it is told of lie inside."""
    return Path(grant.storage) / grant.credentials.attempt_id


def run_group(
    grant: Grant,
    resources: ResourceSpec,
    body: Callable[[Member, Mapping[str, Any]], T],
    config: Mapping[str, Any],
    one: OneOfMany | None = None,
    *,
    can_yield: bool = True,
) -> T:
    """Run the body of a job on every worker.

    Args:
        grant: Of the attempt.
        resources: What each worker needs. An attempt's only group has all workers of the grant; one of many has the
            fewest that will do.
        body: Importable by its name, as it runs in other processes.
        config: The same for each worker; plain data.
        one: Given where the attempt has other groups too.
        can_yield: Whether the body heeds a request to make way, of an attempt's only group.

    Returns:
        What rank 0's body returned.

    Raises:
        TrainingFailedError: the group failed; `classify` knows how.
    """
    # Read by Ray's controller, to which it passes the driver's environment: how soon it sees a worker's death.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    name, storage = (one.name, one.storage) if one else (grant.credentials.attempt_id, grant.storage)
    beats = Path(storage) / name / "beats"
    client = AttemptClient(grant.credentials)
    workers = resources.min_workers if one else grant.workers
    trainer = TorchTrainer(
        _member,
        train_loop_config={
            "body": body,
            "config": dict(config),
            "cpus": resources.cpus_per_worker,
            "credentials": grant.credentials,
            "is_alone": one is None,
            "scope": one.scope if one else _ALONE,
            "beats": str(beats),
        },
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=0 if one else GROUP_RESTARTS,
                max_preemption_failures=0 if one else -1,
                controller_failure_limit=START_FAILURES,
            ),
            callbacks=[*(one.callbacks if one else ()), FaultTeller(grant.credentials, str(beats), one is None)],
        ),
    )
    gang = Gang(workers, resources.cpus_per_worker, resources.gpus_per_worker)
    give_up = None if one else partial(_give_up, client)
    evacuation = Evacuation(gang, RayCluster(), client.leave, give_up)
    try:
        with Watcher(
            beats, client.fault, _kill, evacuation=evacuation if (one.can_yield if one else can_yield) else None
        ):
            return cast(T, trainer.fit().return_value)
    finally:
        client.close()


class FaultTeller(UserCallback):  # type: ignore[misc]
    """Lets the job's history tell which worker's end brought the group down; Ray calls it where it watches the group.

    Args:
        credentials: Of the attempt.
        beats: Folder where the ranks beat.
        is_alone: The group's end is the attempt's end.
    """

    def __init__(self, credentials: Credentials, beats: str, is_alone: bool) -> None:
        self._credentials, self._beats, self._is_alone = credentials, beats, is_alone

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Some workers have failed: name the one that did so by itself."""
        folder = Path(self._beats)
        known = {beat.rank: beat for beat in read_beats(folder)}
        is_told = any(rank in known and is_ended(folder, known[rank]) for rank in worker_exceptions)
        for beat in known.values():
            mark_ended(folder, beat)  # Ray ends the whole group, and a new one may have to wait for its place
        if not is_told:
            self._tell(worker_exceptions, known)

    def _tell(self, worker_exceptions: Mapping[int, Exception], known: Mapping[int, Beat]) -> None:
        rank, message = name_fault(worker_exceptions, known)
        beat = known.get(rank)
        phase, step = (None, None) if beat is None else (beat.phase_name, max(beat.step, 0))
        before, after = (0, 0) if beat is None else (beat.memory_kills, _memory_kills_at(beat.node))
        of_memory = name_memory(worker_exceptions[rank], before, after)
        message += f"; {of_memory}" if of_memory else ""
        client = AttemptClient(self._credentials)
        try:
            client.fault("fault", message, rank=rank, phase=phase, step=step)
            # The same group would run out again, and again; a new attempt is the queue's to grant, once.
            if of_memory and self._is_alone:
                client.fail("oom", message)
        finally:
            client.close()
        print(f"segfleet: {message}; the group of workers starts anew or ends", flush=True)


def _memory_kills_at(node: str) -> int:
    """What a machine's kernel counts; 0 if the machine does not answer."""
    if node == ray.get_runtime_context().get_node_id():
        return count_memory_kills()
    try:
        return cast(int, ray.get(_on(node, count_memory_kills).remote(), timeout=_ASK_S))
    except ray.exceptions.RayError:
        return 0


def _on(node: str, function: Callable[..., Any]) -> Any:
    """The function as a Ray task of one machine."""
    here = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=1, scheduling_strategy=here)(function)


def _kill(beat: Beat) -> None:
    """End a rank's process by a task on its machine; one that has gone since is left alone, and so is its number."""
    try:
        ray.get(_on(beat.node, end_process).remote(beat.pid, beat.created), timeout=_KILL_S)
    except ray.exceptions.RayError as error:
        # A machine that does not answer is Ray's to find lost.
        print(f"segfleet: rank {beat.rank} could not be ended: {error}", flush=True)


class RayCluster:
    """The machines that Ray has, as a driver sees them."""

    def leaving(self) -> dict[str, float]:
        """See `evacuation.Cluster`. No public call tells of it yet; Ray Train itself asks in this way."""
        if not ray.is_initialized():
            return {}
        return {node: ms / 1000 for node, ms in ray._private.state.state.get_draining_nodes().items()}

    def machines(self) -> list[Machine]:
        """See `evacuation.Cluster`."""
        leaving = self.leaving()
        return [
            Machine(
                node["NodeID"],
                node["NodeManagerAddress"],
                Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))),
                node["Alive"],
                leaving.get(node["NodeID"]),
            )
            for node in (ray.nodes() if ray.is_initialized() else ())
        ]


def _give_up(client: AttemptClient, why: str, was_asked: bool) -> None:
    """End the attempt from its driver, so that the queue finds it another place; Ray would wait for minutes."""
    print(f"segfleet: {why}; the queue finds another place", flush=True)
    try:
        if was_asked:
            client.yield_()
        else:
            client.fail("node", why)
    finally:
        exit_process(why)


def _begin(client: AttemptClient, credentials: Credentials, scope: str, node: str) -> Credentials:
    """Rank 0 speaks for its group from now on.

    The machine that Ray has given up may have been cut off before this, and wake up after a later group has begun.
    """
    if any(found["NodeID"] == node and not found["Alive"] for found in ray.nodes()):
        exit_process("the cluster has given up its machine")
    number, token = client.begin_group(scope)
    return replace(credentials, token=token, group=number)


def _member(settings: dict[str, Any]) -> Any:
    """One rank, inside a Ray Train worker."""
    context, device = ray.train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(settings["cpus"])
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), device)
    body, config = settings["body"], settings["config"]
    credentials: Credentials = settings["credentials"]
    client = AttemptClient(credentials)
    node = ray.get_runtime_context().get_node_id()
    try:
        with Beater(ranks.pulse, Path(settings["beats"]), ranks.rank, node):
            begun = _begin(client, credentials, settings["scope"], node) if ranks.is_main else None
            # All ranks have it from rank 0: one that was cut off belongs to the group that it began with.
            credentials = ranks.share(begun)
            client.close()
            client = AttemptClient(credentials)
            if not ranks.is_main:
                return body(Member(ranks, None, credentials.group), config)
            with Heart(client, exit_process) as heart:
                return body(Member(ranks, Voice(client, heart), credentials.group), config)
    except Exception as error:
        # What another try of the same group cannot change ends the attempt here, in the words of the rank that knows.
        failure_class, message = classify(error)
        if failure_class != "infra" and settings["is_alone"]:
            client.fail(failure_class, f"rank {ranks.rank}: {message}")
        raise
    finally:
        client.close()


def report(metrics: dict[str, Any]) -> None:
    """Tell Ray Train, on every rank; checkpoints are not its business: the service knows the latest whole one."""
    ray.train.report(metrics)
