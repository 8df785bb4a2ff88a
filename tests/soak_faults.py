"""What `soak_stack.py` does to the stack: each kind strikes for real, or says that its victim is not there."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil

from segfleet.errors import SegfleetError
from soak_world import NODES, STEPS, World, job_of

# Whom it struck: a job's id, or "" where it struck no job in particular; None: there was nobody to strike.
Struck = str | None
Fault = Callable[[World, random.Random], Struck]

PAUSE_S = 4.0
AWAY_S = 8.0
# Until Ray gives a silent machine up, and a while more.
CUT_OFF_S = 15.0


def _kill(processes: list[psutil.Process], dice: random.Random) -> Struck:
    if not processes:
        return None
    victim = dice.choice(sorted(processes, key=lambda process: process.pid))
    job_id = job_of(victim)
    with suppress(psutil.NoSuchProcess):
        victim.kill()
        return job_id
    return None


def _pause(processes: list[psutil.Process], dice: random.Random) -> Struck:
    if not processes:
        return None
    victim = dice.choice(sorted(processes, key=lambda process: process.pid))
    job_id = job_of(victim)
    with suppress(psutil.NoSuchProcess):
        victim.suspend()
        time.sleep(PAUSE_S)
        victim.resume()
        return job_id
    return None


def rank_killed(world: World, dice: random.Random) -> Struck:
    return _kill(world.trainers(), dice)


def rank_paused(world: World, dice: random.Random) -> Struck:
    return _pause(world.trainers(), dice)


def group_killed(world: World, dice: random.Random) -> Struck:
    trainers = world.trainers()
    struck = {job_of(process) for process in trainers}
    for process in trainers:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return dice.choice(sorted(struck)) if struck else None


def loader_killed(world: World, dice: random.Random) -> Struck:
    parents = {process.pid for process in world.trainers()}
    workers = [process for process in world.processes("multiprocessing", "RayTrainWorker") if process.ppid() in parents]
    return _kill([process for process in workers if "resource_tracker" not in " ".join(process.cmdline())], dice)


def driver_killed(world: World, dice: random.Random) -> Struck:
    drivers = world.processes("-m segfleet_jobs.")
    return _kill([process for process in drivers if "/bin/sh" not in process.cmdline()[0]], dice)


def driver_paused(world: World, dice: random.Random) -> Struck:
    drivers = world.processes("-m segfleet_jobs.")
    return _pause([process for process in drivers if "/bin/sh" not in process.cmdline()[0]], dice)


def supervisor_killed(world: World, dice: random.Random) -> Struck:
    return _kill(world.processes("ray::JobSupervisor"), dice)


def controller_killed(world: World, dice: random.Random) -> Struck:
    return _kill(world.processes("ray::TrainController"), dice)


def node_killed(world: World, dice: random.Random) -> Struck:
    """It loses its power, and another one comes in its place."""
    address = dice.choice(NODES)
    struck = [job_of(process) for process in world.nodes.workers(address)]
    world.nodes.kill(address)
    world.nodes.join(address)
    return struck[0] if struck else ""


def node_paused(world: World, dice: random.Random) -> Struck:
    address = dice.choice(NODES)
    struck = [job_of(process) for process in world.nodes.workers(address)]
    frozen = world.nodes.freeze(address)
    time.sleep(PAUSE_S)
    world.nodes.thaw(frozen)
    return struck[0] if struck else ""


def node_cut_off(world: World, dice: random.Random) -> Struck:
    """For so long that Ray gives it up; then it wakes up, with all its processes, and another one takes its place."""
    address = dice.choice(NODES)
    struck = [job_of(process) for process in world.nodes.workers(address)]
    frozen = world.nodes.freeze(address)
    time.sleep(CUT_OFF_S)
    world.nodes.thaw(frozen)
    time.sleep(PAUSE_S)
    world.nodes.kill(address)
    world.nodes.join(address)
    return struck[0] if struck else ""


def node_drained(world: World, dice: random.Random) -> Struck:
    """Its cloud takes it away with a notice, and another one comes in its place."""
    address = dice.choice(NODES)
    struck = [job_of(process) for process in world.nodes.workers(address)]
    world.nodes.drain(address, seconds=int(CUT_OFF_S))
    time.sleep(CUT_OFF_S)
    world.nodes.kill(address)
    world.nodes.join(address)
    return struck[0] if struck else ""


def service_killed(world: World, dice: random.Random) -> Struck:
    world.end_service(signal.SIGKILL)
    world.start_service()
    return ""


def service_restarted(world: World, dice: random.Random) -> Struck:
    world.end_service(signal.SIGTERM)
    time.sleep(PAUSE_S)
    world.start_service()
    return ""


def service_paused(world: World, dice: random.Random) -> Struck:
    assert world.service is not None
    world.service.send_signal(signal.SIGSTOP)
    time.sleep(AWAY_S)
    world.service.send_signal(signal.SIGCONT)
    return ""


def mlflow_killed(world: World, dice: random.Random) -> Struck:
    with suppress(ProcessLookupError):
        psutil.Process(world.mlflow.pid).kill()
    for process in world.processes("mlflow"):
        with suppress(psutil.NoSuchProcess):
            process.kill() if "server" in " ".join(process.cmdline()) else None
    world.mlflow.wait(20)
    time.sleep(AWAY_S)
    world.restart_mlflow()
    return ""


def _mlflow(fault: str) -> Fault:
    def strike(world: World, dice: random.Random) -> Struck:
        world.faults.slow_s = 2.0
        world.faults.always = fault
        time.sleep(AWAY_S)
        world.faults.always = ""
        return ""

    return strike


def _checkpoints(world: World, dice: random.Random) -> tuple[str, Path] | None:
    """A training at work, and the newest of its checkpoints; only if there is an older one to fall back to."""
    for job in dice.sample(found := world.jobs(), len(found)):
        if job["state"] != "running":
            continue
        whole = sorted((world.home / "storage" / job["id"]).glob("*/step-*/meta.json"), key=lambda one: one.parent.name)
        if len({one.parent.name for one in whole}) >= 2:
            return str(job["id"]), whole[-1].parent
    return None


def checkpoint_damaged(world: World, dice: random.Random) -> Struck:
    """A bit flips in the newest checkpoint, and then somebody needs it."""
    found = _checkpoints(world, dice)
    if found is None:
        return None
    job_id, folder = found
    with suppress(OSError):
        path = folder / dice.choice(["model.safetensors", "state.safetensors", "meta.json"])
        data = bytearray(path.read_bytes())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.chmod(0o600)
        path.write_bytes(data)
        return _kill([process for process in world.trainers() if job_of(process) == job_id], dice)
    return None


def checkpoint_cut(world: World, dice: random.Random) -> Struck:
    """The newest checkpoint loses its end, and then somebody needs it."""
    found = _checkpoints(world, dice)
    if found is None:
        return None
    job_id, folder = found
    with suppress(OSError):
        path = folder / "state.safetensors"
        data = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(data[: dice.randrange(len(data))])
        return _kill([process for process in world.trainers() if job_of(process) == job_id], dice)
    return None


def database_locked(world: World, dice: random.Random) -> Struck:
    """Another program holds the queue's database."""
    with closing(sqlite3.connect(world.home / "segfleet.db", timeout=20.0, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(PAUSE_S)
        connection.execute("ROLLBACK")
    return ""


def _open_job(world: World, dice: random.Random) -> str | None:
    found = [job["id"] for job in world.jobs() if job["state"] in ("queued", "starting", "running")]
    return str(dice.choice(sorted(found))) if found else None


def job_cancelled(world: World, dice: random.Random) -> Struck:
    job_id = _open_job(world, dice)
    if job_id is None:
        return None
    world.ends[job_id].add("cancelled")
    with suppress(SegfleetError):  # it has just ended
        world.client.cancel(job_id)
    return ""


def job_paused(world: World, dice: random.Random) -> Struck:
    """Somebody pauses a job, and lets it go on."""
    job_id = _open_job(world, dice)
    if job_id is None:
        return None
    with suppress(SegfleetError):
        world.client.pause(job_id)
        deadline = time.monotonic() + 60
        while world.client.job(job_id)["state"] not in ("paused", "succeeded", "failed", "cancelled"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)
        world.client.resume(job_id)
    return ""


def higher_job_submitted(world: World, dice: random.Random) -> Struck:
    """It takes the place of those that run, which go on after it."""
    number = 1000 + len(world.accepted)
    train = {**world.training(number)["train"], "steps": STEPS // 2}
    queue = {"priority": 90, "max_retries": 100}
    return world.submit(number, queue=queue, train=train, resources={"workers": 2})


KINDS: dict[str, Fault] = {
    "rank killed": rank_killed,
    "rank paused": rank_paused,
    "all ranks killed": group_killed,
    "loader's process killed": loader_killed,
    "driver killed": driver_killed,
    "driver paused": driver_paused,
    "Ray's supervisor of a job killed": supervisor_killed,
    "Ray's controller of a training killed": controller_killed,
    "node killed and replaced": node_killed,
    "node paused": node_paused,
    "node cut off, given up, awake again": node_cut_off,
    "node drained and replaced": node_drained,
    "service killed": service_killed,
    "service restarted": service_restarted,
    "service paused": service_paused,
    "MLflow killed": mlflow_killed,
    "MLflow answers 500": _mlflow("error"),
    "MLflow slow": _mlflow("slow"),
    "MLflow's answers lost": _mlflow("lost"),
    "MLflow's answers cut off": _mlflow("cut"),
    "checkpoint damaged": checkpoint_damaged,
    "checkpoint cut short": checkpoint_cut,
    "database locked": database_locked,
    "job cancelled by its user": job_cancelled,
    "job paused and resumed by its user": job_paused,
    "job of higher priority": higher_job_submitted,
}


def draws(seed: int) -> Callable[[], str]:
    """The order of kinds, endless: each once before any comes again, in an order of the seed."""
    dice, bag = random.Random(seed), list[str]()

    def draw() -> str:
        if not bag:
            bag.extend(dice.sample(sorted(KINDS), len(KINDS)))
        return bag.pop()

    return draw
