"""Routes of searches' trials: people look at them, the search's attempt writes them with its own token."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from segfleet.server.schemas import CheckpointAnswer, CheckpointBody
from segfleet.server.services import CallerArg, JobId, ServicesArg
from segfleet.server.trial_schemas import (
    SearchTrialsAnswer,
    TrialAnswer,
    TrialBody,
    TrialMeasuredBody,
    TrialNumber,
    TrialReportBody,
    TrialsAnswer,
    TrialStateBody,
)

router = APIRouter(tags=["trials"])
_ATTEMPT = "/attempts/{attempt_id}/trials"
_TRIAL = _ATTEMPT + "/{number}"
Number = Annotated[TrialNumber, Path(description="of the trial, from 1")]


@router.get("/jobs/{job_id}/trials")
def of_job(job_id: JobId, services: ServicesArg) -> SearchTrialsAnswer:
    """All trials of a search, by number, and what they are ranked by."""
    job, trials = services.queue.trials.of_job(job_id)
    search = job.spec["search"]
    answers = [TrialAnswer.of(trial) for trial in trials]
    return SearchTrialsAnswer(trials=answers, metric=search["metric"], mode=search["mode"])


@router.get(_ATTEMPT)
def of_attempt(caller: CallerArg, services: ServicesArg) -> TrialsAnswer:
    """All trials of the attempt's search, by number."""
    trials = services.queue.trials.of_attempt(caller.attempt_id, caller.token)
    return TrialsAnswer(trials=[TrialAnswer.of(trial) for trial in trials])


@router.post(_ATTEMPT)
def add(caller: CallerArg, body: TrialBody, services: ServicesArg) -> TrialAnswer:
    """Note a trial before it runs; the same again changes nothing."""
    trial = services.queue.trials.add(
        caller.attempt_id, caller.token, body.number, body.kind, body.params, body.num_steps
    )
    return TrialAnswer.of(trial)


@router.post(_TRIAL + "/state")
def move(caller: CallerArg, number: Number, body: TrialStateBody, services: ServicesArg) -> TrialAnswer:
    """Change a trial's state; the end it has already is accepted again."""
    trial = services.queue.trials.move(
        caller.attempt_id,
        caller.token,
        number,
        body.state,
        why=body.why,
        mlflow_run=body.mlflow_run,
        worker_seconds=body.worker_seconds,
    )
    return TrialAnswer.of(trial)


@router.post(_TRIAL + "/report")
def report(caller: CallerArg, number: Number, body: TrialReportBody, services: ServicesArg) -> TrialAnswer:
    """Append what a validation has shown; one that is known already stays as it was."""
    trial = services.queue.trials.report(caller.attempt_id, caller.token, number, body.model_dump())
    return TrialAnswer.of(trial)


@router.post(_TRIAL + "/checkpoint")
def set_checkpoint(caller: CallerArg, number: Number, body: CheckpointBody, services: ServicesArg) -> TrialAnswer:
    """Move a trial's pointer to a checkpoint that is durable."""
    trial = services.queue.trials.set_checkpoint(caller.attempt_id, caller.token, number, body.checkpoint)
    return TrialAnswer.of(trial)


@router.get(_TRIAL + "/checkpoint")
def latest_checkpoint(caller: CallerArg, number: Number, services: ServicesArg) -> CheckpointAnswer:
    """A trial's latest checkpoint."""
    found = services.queue.trials.checkpoint(caller.attempt_id, caller.token, number)
    return CheckpointAnswer(checkpoint=found)


@router.post(_TRIAL + "/measured")
def measured(caller: CallerArg, number: Number, body: TrialMeasuredBody, services: ServicesArg) -> TrialAnswer:
    """Note size and speed of a trial's model."""
    trial = services.queue.trials.measured(caller.attempt_id, caller.token, number, body.model_dump())
    return TrialAnswer.of(trial)
