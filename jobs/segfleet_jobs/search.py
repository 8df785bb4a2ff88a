"""`python -m segfleet_jobs.search`: many trainings as one job, the best of them as a model.

The driver checks the data, opens the search's MLflow run and runs the trials side by side, as many as its workers
allow. Then it measures the models, trains the best once more if the spec says so, and has the service register it.
Whatever becomes of a driver, the next one goes on from what the service has recorded.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segfleet.errors import AttemptFencedError, LaunchError
from segfleet.spec.kinds import JobSpec, SearchSpec, TrainSpec
from segfleet.spec.search import final_spec, num_trials, trial_spec
from segfleet_jobs import search_rules as rules
from segfleet_jobs.attempt import AttemptClient, Grant, Heart, Yielded
from segfleet_jobs.checked_data import check_data
from segfleet_jobs.checkpoint_home import checkpoint_home
from segfleet_jobs.child_runs import forget_children, open_children
from segfleet_jobs.failure import SearchFailedError, classify
from segfleet_jobs.patience import WAITING, Patience
from segfleet_jobs.run_plan import plan_run
from segfleet_jobs.search_board import Board
from segfleet_jobs.search_measure import measure_models, protocol
from segfleet_jobs.session import run_attempt
from segfleet_jobs.tracking import end_run, fail_run, open_run
from segfleet_jobs.trial import Search, close_run, run_numbered, run_trial
from segfleet_jobs.trial_task import trial_folder
from segfleet_jobs.tuning import run_trials
from segfleet_pipelines.manifest import Manifest


def work(grant: Grant, spec: JobSpec, client: AttemptClient, heart: Heart) -> dict[str, Any] | Yielded:
    """Run the trials, measure their models, train the best once more, and register it.

    Raises:
        SegfleetError: wrong data or spec, or too many trials failed.
    """
    if not isinstance(spec, SearchSpec):
        raise LaunchError(f"job {grant.job_id} is of kind {spec.kind!r}, not search")
    heart.progress({"phase": "checking data", "num_steps": num_trials(spec)})
    manifest = Manifest.load(spec.base.data.shards)
    checked = check_data(spec.base.data)
    for warning in checked.warnings:
        print(f"segfleet: look at the labels: {warning}", flush=True)
    patience = Patience(on_wait=lambda: heart.progress({"phase": WAITING, "num_steps": num_trials(spec)}))
    run_id = open_run(plan_run(grant.job_id, spec, manifest, checked.tags), patience=patience)
    search = Search(grant, spec, run_id, checked)
    try:
        result = _search(search, client, heart)
        if isinstance(result, Yielded):
            return result
        result["mlflow_run"] = run_id
        end_run(run_id, result)
    except AttemptFencedError:
        raise  # the run belongs to the attempt that has the job now
    except Exception as error:
        fail_run(run_id, classify(error)[1])
        raise
    return result


def parallel_trials(grant: Grant, spec: SearchSpec) -> int:
    """How many trials run at a time: no more than the granted workers can work on, or none would ever begin."""
    return max(1, min(spec.search.max_parallel, grant.workers // spec.base.resources.min_workers))


def _search(search: Search, client: AttemptClient, heart: Heart) -> dict[str, Any] | Yielded:
    spec = search.spec
    parallel = parallel_trials(search.grant, spec)
    if not client.trials():
        # What a life before a retry from the start has left would be taken for this one's.
        shutil.rmtree(trial_folder(search.grant, 1).parent, ignore_errors=True)
        forget_children(search.run_id)
    board = Board(search.grant, spec, client, heart, parallel)
    storage = Path(search.grant.storage) / f"{search.grant.credentials.attempt_id}-tune"
    storage.mkdir(parents=True, exist_ok=True)
    try:
        run_trials(run_numbered, {"search": search}, board, parallel, str(storage))
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    trials = client.trials()
    _close_runs(search, [trial for trial in trials if trial["state"] in rules.ENDED or board.failure])
    if board.failure is not None:
        raise SearchFailedError(board.failure)
    if heart.must_yield or rules.unfinished(trials):
        return Yielded(rules.steps_done(trials))
    best = rules.best_of(trials, spec.search.mode)
    if best is None:
        whys = sorted({trial["why"] for trial in rules.own_trials(trials) if trial["why"]})
        raise SearchFailedError(f"no trial has a value: {'; '.join(whys) or 'there was none'}")
    if measure_models(search, trials, client, heart) is not None:
        return Yielded(rules.steps_done(trials))
    chosen = _final(search, best, client, heart)
    if isinstance(chosen, Yielded):
        return chosen
    return _result(search, board.why, best, chosen, client, heart)


def _close_runs(search: Search, trials: Sequence[rules.Trial]) -> None:
    """End the runs of trials that no process works on any more."""
    still_open = open_children(search.run_id)
    for trial in trials:
        if trial["kind"] == "trial" and trial["mlflow_run"] in still_open:
            close_run(search.task(trial), trial)


def _final(search: Search, best: rules.Trial, client: AttemptClient, heart: Heart) -> rules.Trial | Yielded:
    """The trial that is registered: the best one's retraining, or the best one itself."""
    final = final_spec(search.spec, best["params"])
    if final is None:
        return best
    recorded = client.trials()
    known = next((t for t in recorded if t["kind"] == "final" and t["state"] != "failed"), None)
    number = known["number"] if known else max(trial["number"] for trial in recorded) + 1
    trial = client.add_trial(number, "final", dict(best["params"]), final.train.steps)
    if trial["state"] not in rules.ENDED:
        heart.progress({"phase": "final training", "step": trial["step"], "num_steps": final.train.steps})
        tags = {"segfleet.parent_trial": str(best["number"])}
        outcome = run_trial(search.task(trial, final.model_copy(update={"register_": None}), tags))
        if outcome.state == "yielded":
            return Yielded(rules.steps_done(client.trials()))
        state = "succeeded" if outcome.state == "succeeded" else "failed"
        trial = client.trial(number).state(state, why=outcome.why, worker_seconds=outcome.worker_seconds)
        if state == "failed":
            raise SearchFailedError(f"the final training of trial {best['number']} has failed: {outcome.why}")
    measure_models(search, client.trials(), client, heart)
    return trial


def _result(
    search: Search, why: str, best: rules.Trial, chosen: rules.Trial, client: AttemptClient, heart: Heart
) -> dict[str, Any]:
    spec = search.spec
    trained: TrainSpec | None = trial_spec(spec, chosen["params"])
    if chosen["kind"] == "final":
        trained = final_spec(spec, best["params"])
    assert trained is not None
    best_step = chosen["checkpoint"]["best_step"]
    model = None
    trials = client.trials()
    heart.progress({"phase": "registering", **rules.all_ended(trials)})
    if spec.register_ is not None:
        # The model's code is needed here for the first time, and it takes seconds to import: trials begin without.
        from segfleet_jobs.best_model import register_best
        from segfleet_jobs.checkpoint_bucket import open_checkpoints

        home = checkpoint_home(search.grant, "trials", str(chosen["number"]))
        store = open_checkpoints(home, search.grant.credentials.attempt_id)
        tags = {
            "segfleet.job": search.grant.job_id,
            "segfleet.trial": str(chosen["number"]),
            "segfleet.parent_trial": str(best["number"]),
            **{f"segfleet.param.{path}": str(value) for path, value in best["params"].items()},
        }
        manifest = Manifest.load(trained.data.shards)
        model = register_best(client, trained, manifest, chosen["mlflow_run"], store, best_step, tags)
    return {
        "best_trial": best["number"],
        "best_value": best["best_value"],
        "params": dict(best["params"]),
        "trial": chosen["number"],
        "value": chosen["best_value"],
        "best_step": best_step,
        "why": why,
        "trials": rules.counts(trials),
        "steps": rules.steps_done(trials),
        "worker_seconds": round(sum(trial["worker_seconds"] for trial in trials), 3),
        "measured": protocol(trial_spec(spec, best["params"])),
        "model": model,
    }


if __name__ == "__main__":
    # By its import name, or the workers would get this module's functions by value.
    from segfleet_jobs.search import work as search_work

    sys.exit(run_attempt(search_work))
