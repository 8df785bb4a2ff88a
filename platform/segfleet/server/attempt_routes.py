"""Routes of attempts. All but the claim need the attempt's own token; the queue decides whether it may still write."""

from __future__ import annotations

from fastapi import APIRouter

from segfleet.errors import AttemptFencedError, ModelRefusedError, UnauthorizedError
from segfleet.queue.model import ATTEMPT_ID
from segfleet.registry.registration import Registration, of_job
from segfleet.server.goodput_schemas import FaultBody
from segfleet.server.group_schemas import GroupAnswer, GroupBody, LeaveBody
from segfleet.server.model_schemas import EvaluatedBody, RegisterBody, VersionAnswer
from segfleet.server.schemas import (
    CheckpointAnswer,
    CheckpointBody,
    ClaimBody,
    CommandAnswer,
    CompleteBody,
    DoneAnswer,
    EmptyBody,
    FailBody,
    GrantAnswer,
    HeartbeatBody,
)
from segfleet.server.services import AttemptId, CallerArg, ServicesArg
from segfleet.spec.reference import split_reference

router = APIRouter(prefix="/attempts/{attempt_id}", tags=["attempts"])


@router.post("/claim")
def claim(attempt_id: AttemptId, body: ClaimBody, services: ServicesArg) -> GrantAnswer:
    """Trade the one-time code for the attempt's token and its job."""
    if not body.code:
        raise UnauthorizedError("a claim needs the attempt's one-time code")
    if not ATTEMPT_ID.fullmatch(attempt_id):
        raise AttemptFencedError(attempt_id, "there is no such attempt")
    grant = services.queue.claim(attempt_id, body.code, body.instance)
    fields = {name: getattr(grant, name) for name in GrantAnswer.model_fields if name != "mlflow"}
    return GrantAnswer(**fields, mlflow=dict(services.settings.mlflow_login))


@router.post("/heartbeat")
def heartbeat(caller: CallerArg, body: HeartbeatBody, services: ServicesArg) -> CommandAnswer:
    """A sign of life, answered with what to do."""
    return CommandAnswer(command=services.queue.heartbeat(caller.attempt_id, caller.token, body.progress))


@router.post("/group")
def begin_group(caller: CallerArg, body: GroupBody, services: ServicesArg) -> GroupAnswer:
    """A group of workers begins, and takes over from those before it in its scope."""
    number, token = services.queue.begin_group(caller.attempt_id, caller.token, body.scope)
    return GroupAnswer(number=number, token=token)


@router.post("/leave")
def leave(caller: CallerArg, body: LeaveBody, services: ServicesArg) -> DoneAnswer:
    """The attempt's machines are about to go: it is to write a checkpoint and end, which is no failure."""
    machines = [machine.value() for machine in body.nodes]
    services.queue.leave(caller.attempt_id, caller.token, machines)
    return DoneAnswer()


@router.post("/fault")
def fault(caller: CallerArg, body: FaultBody, services: ServicesArg) -> DoneAnswer:
    """Write to the job's history what went wrong with one of the attempt's workers."""
    services.queue.note_fault(caller.attempt_id, caller.token, body.kind, body.detail())
    return DoneAnswer()


@router.get("/checkpoint")
def latest_checkpoint(caller: CallerArg, services: ServicesArg) -> CheckpointAnswer:
    """The job's latest checkpoint."""
    return CheckpointAnswer(checkpoint=services.queue.authorize(caller.attempt_id, caller.token).checkpoint)


@router.post("/checkpoint")
def set_checkpoint(caller: CallerArg, body: CheckpointBody, services: ServicesArg) -> DoneAnswer:
    """Move the job's pointer to a checkpoint that is durable."""
    services.queue.set_checkpoint(caller.attempt_id, caller.token, body.checkpoint)
    return DoneAnswer()


@router.post("/complete")
def complete(caller: CallerArg, body: CompleteBody, services: ServicesArg) -> DoneAnswer:
    """End the job well."""
    services.queue.complete(caller.attempt_id, caller.token, body.result)
    return DoneAnswer()


@router.post("/fail")
def fail(caller: CallerArg, body: FailBody, services: ServicesArg) -> DoneAnswer:
    """End the attempt badly."""
    failure = {"class": str(body.failure.class_), "message": body.failure.message}
    services.queue.fail(caller.attempt_id, caller.token, failure)
    return DoneAnswer()


@router.post("/yield")
def yield_(caller: CallerArg, _body: EmptyBody, services: ServicesArg) -> DoneAnswer:
    """End the attempt as it was asked to, after its last checkpoint."""
    services.queue.yield_(caller.attempt_id, caller.token)
    return DoneAnswer()


@router.post("/register")
def register(caller: CallerArg, body: RegisterBody, services: ServicesArg) -> VersionAnswer:
    """Make the job's version in the model registry, once between two retries, and promote it to the spec's alias."""
    job = services.queue.authorize(caller.attempt_id, caller.token)
    target = job.spec.get("register")
    if target is None:
        raise ModelRefusedError(f"the spec of job {job.id} has no 'register' section")
    name = target["model"]
    version = services.registry.register(
        Registration(
            name=name,
            run_id=body.run_id,
            model_uri=body.model_uri,
            identity=of_job(job.id, job.budget_from),
            metrics=body.metrics,
            tags=body.tags,
        )
    )
    # Again: while the version was being made, the job may have been given to another attempt.
    services.queue.authorize(caller.attempt_id, caller.token)
    origin = f"{job.id}/{job.budget_from}"
    return VersionAnswer.of(
        services.promotions.ask(name, target["alias"], version, who=job.owner, project=job.project, origin=origin)
    )


@router.post("/evaluated")
def evaluated(caller: CallerArg, body: EvaluatedBody, services: ServicesArg) -> DoneAnswer:
    """Write an evaluation's figures to the version of the spec's model that was evaluated; again changes nothing."""
    job = services.queue.authorize(caller.attempt_id, caller.token)
    if job.kind != "evaluate":
        raise ModelRefusedError(f"job {job.id} is of kind {job.kind!r}: only evaluate jobs add figures to a version")
    name, ref = split_reference(job.spec["model"])
    if not ref.startswith("@") and ref != body.version:
        raise ModelRefusedError(f"job {job.id} evaluates {job.spec['model']}, not version {body.version}")
    services.registry.add_metrics(name, body.version, body.metrics)
    return DoneAnswer()
