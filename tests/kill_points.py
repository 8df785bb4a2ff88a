"""Trainings that are killed at random moments and go on, against the one that nobody disturbed: bit for bit.

Run: nice python tests/kill_points.py [--points 50] [--seed 0] [--workers 1 2]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from killed_rank import Kill, Run, run_rank
from segfleet.spec.kinds import TrainSpec
from training import free_port, make_dataset, make_train_spec

ATTEMPT_S = 120.0
# Longest wait between the event and the kill, seconds: so that the kill falls anywhere in what follows the event.
DELAYS = {"step": 0.12, "backward": 0.06, "all-reduce": 0.002, "validation": 0.03, "resume": 0.8, "checkpoint": 0.004}
# What every point of the training draws on: a mean of the weights, dropout, depth, a schedule, batches over epochs.
OPTIONS = ("train.steps=8", "train.validate_every=4", "train.ema=0.9", "model.drop_path=0.1", "optim.schedule=cosine")


@dataclass(frozen=True, slots=True)
class Whole:
    """What a training has left behind.

    Attributes:
        files: SHA-256 of weights and of all other tensors: optimiser, mean, random states of all ranks.
        meta: What the last checkpoint says of best, scores, skipped steps and scaler.
        result: As returned.
        curves: All points of each step, as often as they were written.
        order: For each rank and step the keys of its samples, as often as the step was done.
        damaged: What was found damaged.
        events: How many of each phase one rank has seen; only of an undisturbed training.
    """

    files: dict[str, str]
    meta: dict[str, Any]
    result: dict[str, Any]
    curves: dict[int, list[dict[str, float]]]
    order: dict[tuple[int, int], list[list[str]]]
    damaged: list[Any]
    events: dict[int, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Point:
    """One killed training.

    Attributes:
        kills: In the order of attempts.
        redone: Steps that were done more than once.
        differences: From the undisturbed one.
    """

    kills: tuple[Kill, ...]
    redone: int
    differences: tuple[str, ...]


def phases_of(world_size: int) -> tuple[str, ...]:
    """Where a training of so many workers can be killed."""
    shared = ("step", "backward", "checkpoint", "pointer", "validation", "prune", "resume")
    return shared if world_size == 1 else (*shared, "all-reduce")


def draw(world_size: int, points: int, seed: int, events: dict[int, dict[str, int]]) -> list[tuple[Kill, ...]]:
    """Kills spread over phases, ranks and the length of the training."""
    rng = random.Random(f"{seed}/{world_size}")
    return [_draw(phase, world_size, events, rng) for phase in islice(cycle(phases_of(world_size)), points)]


def _draw(phase: str, world_size: int, events: dict[int, dict[str, int]], rng: random.Random) -> tuple[Kill, ...]:
    if phase == "resume":
        # Killed in the step, then again while it loads what it goes on from.
        return (*_draw("step", world_size, events, rng), _kill("resume", rng.randrange(world_size), 0, rng))
    # Rank 0 alone writes.
    rank = 0 if phase in ("checkpoint", "pointer", "prune") else rng.randrange(world_size)
    return (_kill(phase, rank, rng.randrange(events[rank][phase]), rng),)


def _kill(phase: str, rank: int, number: int, rng: random.Random) -> Kill:
    return Kill(phase, rank, number, round(rng.uniform(0.0, DELAYS.get(phase, 0.0)) * rng.choice((0, 1)), 4))


class Bench:
    """Runs trainings in processes that are forked from one which has imported everything."""

    def __init__(self, spec: TrainSpec, world_size: int) -> None:
        self._spec, self._world_size = spec, world_size
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["killed_rank"])
        # The process that forks does not get to know where this one finds its modules, but by the environment.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)

    def train(self, folder: Path, kills: tuple[Kill, ...]) -> Whole:
        """A training that is killed so, each attempt once, and then left alone."""
        folder.mkdir(parents=True)
        for number, kill in enumerate((*kills, None), start=1):
            is_killed = self._attempt(folder, f"a{number}", kill)
            if is_killed is (kill is None):
                raise RuntimeError(f"attempt {number} of {folder} was {'' if is_killed else 'not '}killed: {kill}")
        return _whole(folder, self._world_size)

    def _attempt(self, folder: Path, attempt: str, kill: Kill | None) -> bool:
        """Whether a rank was killed; then the others are too, as the group's keeper would."""
        run = Run(self._spec, self._world_size, free_port(), folder, attempt, kill)
        ranks = [self._processes.Process(target=run_rank, args=(run, rank)) for rank in range(self._world_size)]
        for rank in ranks:
            rank.start()
        try:
            waiting, deadline = list(ranks), time.monotonic() + ATTEMPT_S
            while waiting and all(rank.exitcode in (None, 0) for rank in ranks):
                left = deadline - time.monotonic()
                if left < 0:
                    raise TimeoutError(f"{attempt} of {folder} does not end")
                multiprocessing.connection.wait([rank.sentinel for rank in waiting], left)
                waiting = [rank for rank in waiting if rank.exitcode is None]
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        codes = [rank.exitcode for rank in ranks]
        if kill is None and any(codes):
            raise RuntimeError(f"{attempt} of {folder} failed: {codes}")
        return codes[kill.rank] == -signal.SIGKILL if kill else False


def _whole(folder: Path, world_size: int) -> Whole:
    pointer = json.loads((folder / "pointer.json").read_text())
    meta = json.loads((Path(pointer["path"]) / "meta.json").read_text())
    results = [_notes(folder, "result", rank) for rank in range(world_size)]
    curves: dict[int, list[dict[str, float]]] = {}
    for step, values in _notes(folder, "curves", 0):
        curves.setdefault(step, []).append(values)
    order: dict[tuple[int, int], list[list[str]]] = {}
    for rank in range(world_size):
        for step, keys in _notes(folder, "order", rank):
            order.setdefault((rank, step), []).append(keys)
    return Whole(
        files=meta["files"],
        meta={name: meta[name] for name in ("step", "best", "scores", "skipped_steps", "skipped_samples", "scaler")},
        result=results[0][0][0],
        curves=curves,
        order=order,
        damaged=_notes(folder, "damaged", 0),
        events={rank: notes[0][1] for rank, notes in enumerate(results)},
    )


def _notes(folder: Path, what: str, rank: int) -> list[Any]:
    """Of all attempts, in their order; a line that a kill has cut is none."""
    found = []
    for path in sorted(folder.glob(f"a*-{what}-{rank}.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return found


def compare(whole: Whole, other: Whole) -> tuple[str, ...]:
    """In what a killed training differs from the undisturbed one."""
    names = ("files", "meta", "result")
    found = [name for name in names if getattr(whole, name) != getattr(other, name)]
    if whole.curves.keys() != other.curves.keys() or any(
        point not in whole.curves[step] for step, points in other.curves.items() for point in points
    ):
        found.append("curves")
    if any(point not in other.curves[step] for step, points in whole.curves.items() for point in points):
        found.append("missing points")
    if whole.order.keys() != other.order.keys() or any(
        keys != whole.order[place][0] for place, times in other.order.items() for keys in times
    ):
        found.append("order of samples")
    if other.damaged:
        found.append("damaged")
    return tuple(found)


def run_points(shards: str, folder: Path, world_size: int, points: int, seed: int) -> list[Point]:
    """Kill a training at so many points."""
    bench = Bench(make_train_spec(shards, *OPTIONS, f"resources.workers={world_size}"), world_size)
    whole = bench.train(folder / "whole", ())
    found = []
    for number, kills in enumerate(draw(world_size, points, seed, whole.events)):
        place = folder / f"point-{number:03d}"
        other = bench.train(place, kills)
        redone = sum(len(times) - 1 for (rank, _), times in other.order.items() if rank == 0)
        found.append(Point(kills, redone, compare(whole, other)))
        shutil.rmtree(place)
    return found


def main() -> int:
    """Print the table; 1 if any training differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50, help="for each number of workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    differing = 0
    print(f"{'workers':>7} {'phase':<12} {'points':>6} {'redone steps':>12} {'differ':>6}   seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="kill-points-") as scratch:
        shards = make_dataset(Path(scratch))
        for workers in options.workers:
            begin = time.monotonic()
            points = run_points(shards, Path(scratch) / str(workers), workers, options.points, options.seed)
            _print(workers, points)
            differing += sum(bool(point.differences) for point in points)
            print(f"{workers:>7} {'all':<12} {len(points):>6}   in {time.monotonic() - begin:.0f} s", flush=True)
    return int(differing > 0)


def _print(workers: int, points: list[Point]) -> None:
    counts = Counter(point.kills[-1].phase for point in points)
    for phase, count in counts.items():
        ours = [point for point in points if point.kills[-1].phase == phase]
        differ = [point for point in ours if point.differences]
        print(f"{workers:>7} {phase:<12} {count:>6} {sum(point.redone for point in ours):>12} {len(differ):>6}")
        for point in differ:
            print(f"        {point.kills}: {', '.join(point.differences)}")


if __name__ == "__main__":
    sys.exit(main())
