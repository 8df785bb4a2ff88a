"""A service at a real address with a week's worth of made-up jobs: what browser tests and screenshots look at."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from factories import make_queue, make_settings
from fakes import FakeLauncher
from segfleet.access.desk import Access
from segfleet.access.roles import Role
from segfleet.cluster.launcher import RayState
from segfleet.cluster.ports import free_ports
from segfleet.promotion.gate import Gate
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.leadership import Office
from segfleet.queue.machines import Machine
from segfleet.queue.model import Grant, Job
from segfleet.queue.scheduling.pool import Pool
from segfleet.queue.scheduling.values import Gang, Node
from segfleet.queue.service import Queue
from segfleet.server.api import create_app
from segfleet.server.services import Services
from segfleet.settings import Settings
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.tryout.child import Prediction
from segfleet.web.datasets import id_of
from segfleet_jobs.pictures import encode_png, prediction_sheet
from segfleet_pipelines.datasets.synthetic import CLASSES, IGNORE_INDEX, draw_landscape
from segfleet_pipelines.manifest import FileInfo, Manifest, SplitInfo
from segfleet_pipelines.picture import overlay
from segfleet_pipelines.writer import prepare
from serving import API_TOKEN, FakeRegistry
from world import INSTANCE

HOUR = 3600.0
STREETS = ("road", "building", "vegetation", "car", "sky", "sidewalk", "terrain", "truck", "bus", "person", "wall")
STREETS = (*STREETS, "fence", "pole", "bicycle", "train", "motorcycle", "rider", "traffic sign", "traffic light")
LONG_NAME = "night-and-rain-" + "with-a-name-that-is-as-long-as-names-can-be-" + "abcd"


@dataclass
class MovedClock:
    """The time, moved back by as much as is left of the past to be told."""

    behind_s: float = 0.0

    def __call__(self) -> float:
        return time.time() - self.behind_s


class Machines(FakeLauncher):
    """Four machines, filled with the workers of the jobs that run."""

    def machines(self) -> tuple[Machine, ...]:
        nodes = (Node(32, 4),) * 3 + (Node(64, 8),)
        pool = Pool(nodes)
        for job in self.jobs.values():
            if job.needs is not None and job.state == RayState.RUNNING:
                gang = Gang(job.needs.workers, job.needs.cpus, job.needs.gpus)
                pool = pool.without(gang, gang.workers) or pool
        return tuple(
            Machine(f"node-{i}", f"10.0.0.{10 + i}", all_.cpus, all_.gpus, all_.cpus - left.cpus, all_.gpus - left.gpus)
            for i, (all_, left) in enumerate(zip(nodes, pool.nodes, strict=True), start=1)
        )


@dataclass
class Models(FakeRegistry):
    """A registry with some models; the first has three versions, and one of an alias with a gate."""

    aliases: dict[str, str] = field(default_factory=lambda: {"champion": "6", "candidate": "7"})
    versions: set[str] = field(default_factory=lambda: {"5", "6", "7"})

    def models(self) -> list[dict[str, Any]]:
        now = time.time()
        others = {"segmenter-aerial": 3, "segmenter-night-and-rain": 1}
        return [
            self._document("segmenter-cityscapes", dict(self.aliases), "7", now - 3 * HOUR),
            *(self._document(name, {"champion": "2"}, "2", now - days * 24 * HOUR) for name, days in others.items()),
        ]

    def model(self, name: str) -> dict[str, Any]:
        (document,) = (model for model in self.models() if model["name"] == name)
        return {**document, "versions": [self.version(name, number) for number in sorted(self.versions, reverse=True)]}

    def version(self, name: str, ref: str) -> dict[str, Any]:
        number = self.aliases[ref.removeprefix("@")] if ref.startswith("@") else ref
        gain = 0.011 * int(number)
        metrics = {
            "miou": 0.687 + gain,
            "pixel_accuracy": 0.921 + gain / 4,
            "miou (camvid val, reference-ss)": 0.502 + gain / 2,
            "boundary_iou": 0.561 + gain,
        }
        tags = {
            "segfleet.variant": "seg-s-mask/16" if number < "7" else "seg-l-mask/16",
            "segfleet.parameters": "26400000" if number < "7" else "333200000",
            "segfleet.dataset": "cityscapes",
            "segfleet.content_id": "9f2c41d07be3" + "0" * 52,
            "segfleet.base": "vit_small_patch16_384",
            "segfleet.step": "78000",
            "segfleet.code_version": "0.1.0",
            "segfleet.licence.data": "Cityscapes terms, not for commercial use",
            "segfleet.licence.weights": "Apache-2.0",
        }
        return {
            "name": name,
            "version": number,
            "aliases": [alias for alias, version in self.aliases.items() if version == number],
            "job": "job-aaaaaaaa",
            "run_id": number * 32,
            "created_at": time.time() - (8 - int(number)) * 30 * HOUR,
            "metrics": metrics,
            "tags": tags,
        }

    def _known(self, name: str, ref: str = "@champion") -> None:
        """All of these are."""

    def _document(self, name: str, aliases: dict[str, str], latest: str, at: float) -> dict[str, Any]:
        return {"name": name, "aliases": aliases, "latest_version": latest, "updated_at": at}


@dataclass
class Site:
    """The service and what stands behind it.

    Attributes:
        url: Of its pages.
        tokens: By user.
        jobs: Ids by name.
        dataset: Id of the page of a dataset that is there; empty: none is.
    """

    url: str
    queue: Queue
    registry: FakeRegistry
    tokens: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    dataset: str = ""


def add_dataset(site: Site, out: Path) -> None:
    """Prepare one for real, and let a job of ann's have made it and another read it."""
    spec = {"kind": "prepare", "name": "landscapes", "dataset": "synthetic", "samples": 60, "out": str(out)}
    resolved = resolve_spec(spec)
    assert isinstance(resolved, PrepareSpec)
    prepare(resolved)
    train = {"kind": "train", "name": "landscapes-seg-s", "data": {"shards": str(out)}}
    for document in (spec, train):
        site.queue.submit(to_document(resolve_spec(document)), owner="ann")
    site.dataset = id_of(str(out))


class Past:
    """Lets things happen, from so long ago until now.

    Args:
        settings: Of the service.
        queue: With a `MovedClock`.
        registry: Gets the curves.
    """

    def __init__(self, settings: Settings, queue: Queue, registry: FakeRegistry) -> None:
        self.queue, self.registry, self.ray = queue, registry, Machines()
        office = Office(queue.store, queue.clock, settings.server, float("inf"))
        office.turn()
        assert office.term is not None
        self._dispatcher = Dispatcher(queue, office.term, self.ray, settings)
        self._dice = random.Random(7)

    def at(self, hours_ago: float) -> None:
        """Go on to so many hours before now."""
        clock: Any = self.queue.clock
        clock.behind_s = hours_ago * HOUR
        self._dispatcher.step(clock())

    def submit(self, name: str, owner: str, project: str, workers: Any = 2, steps: int = 80_000, **queue: Any) -> Job:
        document = {
            "kind": "train",
            "name": name,
            "recipe": "cityscapes",
            "data": {"shards": "s3://datasets/cityscapes/v2"},
            "train": {"steps": steps, "global_batch": 16},
            "resources": {"workers": workers, "gpus_per_worker": 1, "cpus_per_worker": 4},
            "queue": {"project": project, "time_limit": "12h", **queue},
        }
        return self.queue.submit(to_document(resolve_spec(document)), owner=owner)[0]

    def search(self, name: str, owner: str, project: str) -> Job:
        document = {
            "kind": "search",
            "name": name,
            "base": {"data": {"shards": "s3://datasets/cityscapes/v2"}, "train": {"steps": 4_000}},
            "space": {
                "model.backbone": ["vit_tiny_patch16_384", "vit_small_patch16_384", "vit_base_patch16_384"],
                "model.patch_size": [8, 16, 32],
            },
            "search": {"max_parallel": 2},
            "queue": {"project": project},
        }
        return self.queue.submit(to_document(resolve_spec(document)), owner=owner)[0]

    def try_out(self, job: Job, grant: Grant) -> None:
        """All trials of a search; one fails, the weak ones are stopped early."""
        space, trials, who = job.spec["space"], self.queue.trials, (grant.attempt_id, grant.token)
        sizes = {"tiny": (5.7e6, 3.0, 0.58), "small": (22e6, 1.6, 0.68), "base": (86e6, 1.0, 0.72)}
        pairs = itertools.product(space["model.backbone"], space["model.patch_size"])
        for number, (backbone, patch) in enumerate(pairs, start=1):
            parameters, speed, best = sizes[backbone.split("_")[1]]
            best -= {8: 0.0, 16: 0.012, 32: 0.055}[patch]
            trials.add(*who, number, "trial", {"model.backbone": backbone, "model.patch_size": patch}, 4_000)
            trials.move(*who, number, "running")
            last = 4 if best < 0.6 else 8
            for validation in range(1, last + 1):
                value = best * (1 - math.exp(-0.45 * validation))
                shown = {
                    "validation": validation,
                    "step": 500 * validation,
                    "value": value,
                    "miou": value,
                    "seconds": 60.0,
                }
                trials.report(*who, number, shown)
            figures = {"parameters": int(parameters), "images_per_s": 14.0 * speed * (patch / 16) ** 1.7}
            trials.measured(*who, number, figures)
            if number == 7:
                trials.move(*who, number, "failed", why="out of memory: 16 pictures of 768 with patch 8")
            elif last == 8:
                trials.move(*who, number, "succeeded")
            else:
                trials.move(*who, number, "stopped", why="behind the others at step 2,000")

    def claim(self, job: Job) -> Grant:
        attempt_id = f"{job.id}-a{self.queue.get(job.id).attempt}"
        return self.queue.claim(attempt_id, self.ray.jobs[attempt_id].env["SEGFLEET_CODE"], INSTANCE)

    def learn(self, job: Job, grant: Grant, step: int, hours: float, best: float, began: int = 0) -> None:
        """The job tells that it has come so far in so many hours, and what it shows in MLflow."""
        steps = job.spec["train"]["steps"]
        pace = hours * HOUR / max(step - began, 1)
        miou, loss = self._miou(step, steps, best), self._loss(step, steps)
        parts = {"load": 40.0, "data": 0.02, "step": 0.86, "validation": 0.07, "checkpoint": 0.02, "mlflow": 0.004}
        seconds = {part: share * hours * HOUR if share < 1 else share for part, share in parts.items()}
        account = {"life": "one", "elapsed": hours * HOUR, "part": "step", "seconds": seconds, "unsaved": {}}
        figures = {"step": step, "num_steps": steps, "miou": miou, "loss": loss, "eta_s": (steps - step) * pace}
        places = {"start": began, "step": step, "saved": step}
        progress = {**figures, "samples_per_s": 16 / pace, "phase": "train", "account": {**account, **places}}
        self.queue.heartbeat(grant.attempt_id, grant.token, progress)
        path = f"s3://runs/{job.id}/checkpoints/step-{step:08d}"
        pointer = {"path": path, "step": step, "sha256": "0" * 64, "bytes": 105_906_176}
        self.queue.set_checkpoint(grant.attempt_id, grant.token, pointer)
        self.ray.jobs[grant.attempt_id].log = self._log(grant.attempt_id, began, step, steps)
        self.registry.curves_of[job.id] = self._curves(step, steps, best, 16 / pace)

    def finish(self, grant: Grant, best: float, version: str) -> None:
        model = {"name": "segmenter-cityscapes", "version": version, "alias": "candidate"}
        self.queue.complete(grant.attempt_id, grant.token, {"miou": best, "best_step": 78_000, "model": model})

        self.ray.end(grant.attempt_id, RayState.SUCCEEDED)

    def fail(self, grant: Grant, kind: str, message: str) -> None:
        self.queue.fail(grant.attempt_id, grant.token, {"class": kind, "message": message})
        self.ray.end(grant.attempt_id, RayState.FAILED)

    def _curves(self, step: int, steps: int, best: float, speed: float) -> dict[str, Any]:
        every, seen = max(steps // 200, 1), max(steps // 20, 1)
        at = range(every, step + 1, every)
        series = {
            "train/loss": [(s, self._loss(s, steps)) for s in at],
            "train/lr": [(s, 0.01 * (1 - s / steps) ** 0.9) for s in at],
            "val/miou": [(s, self._miou(s, steps, best)) for s in range(seen, step + 1, seen)],
            "train/samples_per_s": [(s, speed * self._dice.uniform(0.96, 1.03)) for s in at],
        }
        reached = self._miou(step, steps, best)
        classes = {name: min(0.98, reached * (1.25 - 0.03 * i)) for i, name in enumerate(STREETS)}
        pictures = [name for name in self.registry.pictures if int(name[5:13]) <= step]
        run = {"run_id": "4f" * 16, "experiment_id": "1"}
        return {**run, "series": series, "classes": classes, "pictures": pictures}

    def _loss(self, step: int, steps: int) -> float:
        return 0.24 + 2.3 * math.exp(-9 * step / steps) + self._dice.gauss(0, 0.035)

    def _miou(self, step: int, steps: int, best: float) -> float:
        return max(0.02, best * (1 - math.exp(-5 * step / steps)) + self._dice.gauss(0, 0.004))

    def _log(self, attempt_id: str, began: int, step: int, steps: int) -> str:
        head = f"{attempt_id}: 19 classes, 2975 samples, 500 for validation\n\x1b[32mworkers are up\x1b[0m"
        told = [
            f"step {at}/{steps} loss {self._loss(at, steps):.4f} lr {0.01 * (1 - at / steps) ** 0.9:.2e}"
            for at in range(began + 500, step + 1, max((step - began) // 60, 500))
        ]
        tail = "warning: <script>alert(1)</script> is no class name; \u202egnp.exe is left out\n"
        return "\n".join([head, *told, tail])


def sheets() -> dict[str, bytes]:
    """Sheets of predictions that get better with the steps."""
    rng = np.random.default_rng(3)
    scenes = [draw_landscape(rng) for _ in range(3)]
    palette = tuple(tuple(color) for color in CLASSES.values())
    info = FileInfo("samples.parquet", "0" * 64, 1)
    manifest = Manifest("landscapes", tuple(CLASSES), palette, IGNORE_INDEX, {"val": SplitInfo(1, ())}, info)
    found = {}
    for step, shift in ((8000, 13), (16000, 8), (32000, 5), (48000, 3), (64000, 1)):
        pictures = [(f"scene_{i}", image, mask, _guess(mask, shift)) for i, (image, mask) in enumerate(scenes)]
        found[f"step-{step:08d}.png"] = prediction_sheet(pictures, manifest)
    return found


def _guess(truth: Any, shift: int) -> Any:
    moved = np.roll(truth, shift, axis=1)
    return np.where(moved == IGNORE_INDEX, 0, moved).astype(np.uint8)


def street() -> bytes:
    """A picture to try a model on, a PNG."""
    return encode_png(_scene()[0])


def predicted(_model: Path, _picture: bytes, _work: Path) -> Prediction:
    """What a model makes of `street`, nearly right."""
    image, mask = _scene()
    labels, names = _guess(mask, 2), tuple(CLASSES)
    counts = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    shares = {name: float(share) for name, share in zip(names, counts, strict=True)}
    colors = {name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in CLASSES.items()}
    blended = overlay(image, labels, tuple(tuple(color) for color in CLASSES.values()))
    return Prediction(encode_png(blended), {name: share for name, share in shares.items() if share}, colors)


def _scene() -> Any:
    image, mask = draw_landscape(np.random.default_rng(5))
    return image.repeat(5, 0).repeat(5, 1), mask.repeat(5, 0).repeat(5, 1)


def happen(past: Past, site: Site) -> None:
    """Nine hours of a team."""
    past.at(9.0)
    queue = past.queue
    queue.set_policy("project", "streets", {"workers": 8, "gpus": 8, "max_gpus": 16})
    queue.set_policy("project", "aerial", {"workers": 4, "gpus": 4})
    done = past.submit("cityscapes-seg-s-mask-16", "ann", "streets", 4)
    odd = past.submit(LONG_NAME, "bob", "night", 2)
    broken = past.submit("cityscapes-lr-too-high", "cem", "streets", 2)
    past.at(8.9)
    grants = {job.id: past.claim(job) for job in (done, odd, broken)}
    past.at(8.0)
    past.learn(broken, grants[broken.id], 2_500, 0.9, 0.3)
    past.fail(grants[broken.id], "nan", "loss was not finite for 10 steps in a row, from step 2493 on")
    search = past.search("patch-and-model-size", "ann", "streets")
    past.at(7.9)
    searching = past.claim(search)
    past.try_out(search, searching)
    past.at(5.0)
    main = past.submit("cityscapes-seg-l-mask-16", "ann", "streets", {"min": 4, "max": 8})
    past.at(4.95)
    first = past.claim(main)
    past.at(3.6)
    past.learn(main, first, 18_000, 1.35, 0.79)
    past.fail(first, "node", "node 10.0.3.7 left the cluster")
    past.at(3.0)
    past.learn(done, grants[done.id], 80_000, 5.9, 0.764)
    past.finish(grants[done.id], 0.764, "7")
    past.at(2.98)
    past.at(2.97)
    second = past.claim(main)
    aerial = past.submit("aerial-seg-ti-16-warmup", "dora", "aerial", 4, 40_000)
    cancelled = past.submit("wrong-dataset", "cem", "default", 1)
    queue.cancel(cancelled.id, "cem")
    past.at(2.9)
    flown = past.claim(aerial)
    paused = past.submit("aerial-seg-b-mask-16", "dora", "aerial", 4, 120_000)
    queue.pause(paused.id, "dora")
    waiting = (("ann", "streets", 8), ("cem", "streets", 4), ("bob", "night", 4), ("dora", "aerial", 8))
    for number, (owner, project, workers) in enumerate((*waiting, ("eve", "default", 1))):
        past.at(1.5 - number / 10)
        past.submit(f"{project}-ablation-{number + 1}", owner, project, workers, priority=50 - 10 * (number == 4))
    past.at(0.0)
    past.learn(main, second, 67_500, 2.98, 0.79, 18_000)
    past.learn(aerial, flown, 31_000, 2.9, 0.61)
    past.learn(odd, grants[odd.id], 52_000, 8.9, 0.58)
    past.at(0.0)
    names = {"search": search, "main": main, "done": done, "broken": broken, "odd": odd, "paused": paused}
    site.jobs = {name: job.id for name, job in names.items()}


@contextmanager
def lively(folder: Path, story: Callable[[Past, Site], None] = happen) -> Iterator[Site]:
    """The service with its made-up jobs, at a port of this machine.

    Args:
        folder: For all that it stores.
        story: Lets the jobs happen.
    """
    settings = make_settings(folder / "home", lease_s=1e9, start_deadline_s=1e9)
    queue = make_queue(settings.home.root, MovedClock())  # type: ignore[arg-type]
    registry = Models(pictures=sheets())
    office = Office(queue.store, queue.clock, settings.server, settings.leader_lease_s)
    services = Services(settings, queue, registry, lambda: True, office)  # type: ignore[arg-type]
    services.tries.predict = predicted
    app = create_app(services, API_TOKEN)
    port = free_ports(1)[0]
    site = Site(f"http://127.0.0.1:{port}", queue, registry)
    story(Past(settings, queue, registry), site)
    access = Access(queue.store, queue.clock, API_TOKEN)
    roles = {"vera": Role.VIEWER, "ann": Role.USER, "otto": Role.OPERATOR, "ada": Role.ADMIN}
    site.tokens = {
        name: access.create_token(name, role, ["streets", "default"], None, "local")[1] for name, role in roles.items()
    }
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        services.promotions.ask("segmenter-cityscapes", "candidate", "7", who="ann", project="streets")
        services.promotions.set_gate(
            "segmenter-cityscapes", "champion", Gate(shards="s3://datasets/cityscapes/v2", margin=0.005), "otto"
        )
        yield site
    finally:
        services.feed.close()
        server.should_exit = True
        thread.join(10)
        queue.store.close()
