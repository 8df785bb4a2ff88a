"""Would a fair person have done the same? One hour of virtual time, 200 mixed jobs of four projects, as a picture.

Run: python benchmarks/bench_fairness.py [--out fairness.png] [--seed N]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segfleet.queue.scheduling.values import Candidate, Decision, Gang, Holding, Node, Policy, Quota, Start
from simulation import Simulation, Span, Work

NODES = (Node(32, 8),) * 4
GPUS = sum(node.gpus for node in NODES)
HOUR_S = 3600.0
COLOURS = {"vision": "#4477aa", "medical": "#228833", "maps": "#ee6677", "students": "#ccbb44"}
POLICY = Policy(
    projects={"vision": Quota(gpus=12), "medical": Quota(gpus=8), "maps": Quota(gpus=6, max_gpus=16)},
    weights={"vision": 2.0, "students": 0.5},
    preempts_for_priority=True,
    preempts_to_reclaim=True,
    min_run_s=120.0,
    grace_s=30.0,
    entry_penalty_s=60.0,
)


@dataclass(frozen=True, slots=True)
class Glance:
    """What was known after a pass.

    Attributes:
        held: GPUs of each project.
        demand: GPUs that each priority and project held, or waited for.
        use: Decayed use of each project, in seconds of the whole cluster.
    """

    time: float
    held: dict[str, int]
    demand: dict[tuple[int, str], int]
    use: dict[str, float]


def submissions(seed: int) -> list[Work]:
    """200 jobs: steady work, a burst of the students', and a project that comes late to its guarantee."""
    rng = random.Random(seed)
    arrivals = [("vision", rng.uniform(0, 3000)) for _ in range(70)]
    arrivals += [("students", rng.uniform(200, 300)) for _ in range(50)]
    arrivals += [("maps", rng.uniform(0, 3000)) for _ in range(45)]
    arrivals += [("medical", rng.uniform(1200, 2600)) for _ in range(35)]
    works = []
    for seq, (project, arrives) in enumerate(sorted(arrivals, key=lambda one: one[1]), 1):
        workers = rng.choice((1, 1, 1, 2, 2, 4, 4, 8))
        most = 2 * workers if workers < 8 and rng.random() < 0.25 else workers
        takes_s = rng.choice((60.0, 120.0, 240.0, 480.0)) * rng.uniform(0.8, 1.2)
        job = Candidate(
            job_id=f"job-{seq}",
            seq=seq,
            gang=Gang(workers, 4, 1, most),
            priority=rng.choice((30, *(50,) * 8, 50 if project == "students" else 70)),
            project=project,
            user=project,
            time_left_s=takes_s * rng.uniform(1.1, 2.0) if rng.random() < 0.6 else None,
        )
        works.append(Work(job=job, arrives=arrives, takes_s=takes_s))
    return works


def main() -> None:
    """Simulate, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "fairness.png")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    glances: list[Glance] = []

    def watch(now: float, jobs: Sequence[Candidate], running: Sequence[Holding], decisions: Sequence[Decision]) -> None:
        starts = {decision.job_id: decision.workers for decision in decisions if isinstance(decision, Start)}
        held = dict.fromkeys(COLOURS, 0)
        demand: dict[tuple[int, str], int] = {}
        for one, workers in [(h, h.workers) for h in running] + [(j, starts.get(j.job_id, 0)) for j in jobs]:
            held[one.project] += workers
            kind = one.priority, one.project
            demand[kind] = demand.get(kind, 0) + (workers or one.gang.workers)
        glances.append(Glance(now, held, demand, dict(simulation.use)))

    works = submissions(arguments.seed)
    simulation = Simulation(NODES, works, POLICY, checkpoint_s=20.0, tick_s=15.0, watch=watch)
    simulation.run()
    rows = table(works, simulation)
    print("\n".join("".join(f"{cell:>14}" for cell in row) for row in rows))
    busy_s = sum(
        (min(s.end, HOUR_S) - s.holding.since) * s.holding.workers for s in simulation.spans if s.holding.since < HOUR_S
    )
    print(f"GPUs busy in the hour: {busy_s / GPUS / HOUR_S:.0%}; all done after {simulation.now / 60:.0f} min")
    draw(simulation.spans, glances, rows, arguments.out)
    print(arguments.out)


def table(works: Sequence[Work], simulation: Simulation) -> list[tuple[str, ...]]:
    """Waits and what else a project would complain about, with a heading."""
    starts = simulation.starts()
    rows = [("project", "weight", "guaranteed", "jobs", "GPU min", "median wait", "p95 wait", "longest", "stopped")]
    for project in COLOURS:
        mine = [work for work in works if work.job.project == project]
        waits = sorted(starts[work.job.job_id] - work.arrives for work in mine)
        spans = [span for span in simulation.spans if span.holding.project == project]
        used_s = sum((span.end - span.holding.since) * span.holding.workers for span in spans)
        rows.append(
            (
                project,
                f"{POLICY.weights.get(project, 1.0):g}",
                str(POLICY.projects.get(project, Quota()).gpus or 0),
                str(len(mine)),
                f"{used_s / 60:.0f}",
                f"{statistics.median(waits):.0f} s",
                f"{waits[int(0.95 * len(waits))]:.0f} s",
                f"{waits[-1]:.0f} s",
                str(sum(span.outcome == "preempted" for span in spans)),
            )
        )
    return rows


def entitled(glance: Glance) -> dict[str, float]:
    """GPUs that each project may expect: band after band, in a band first its guarantee, then by weight."""
    share = dict.fromkeys(COLOURS, 0.0)
    left = float(GPUS)
    for band in sorted({priority for priority, _ in glance.demand}, reverse=True):
        want = {}
        for name in COLOURS:
            bound = POLICY.projects.get(name, Quota()).max_gpus or GPUS
            want[name] = min(float(glance.demand.get((band, name), 0)), bound - share[name])
        for name in COLOURS:
            owed = min(want[name], max(0.0, (POLICY.projects.get(name, Quota()).gpus or 0) - share[name]), left)
            share[name], want[name], left = share[name] + owed, want[name] - owed, left - owed
        # What is left goes to the poorest that wants more, a little at a time.
        while left > 0 and (hungry := [name for name in COLOURS if want[name] > 0]):
            poorest = min(hungry, key=lambda name: (share[name] / POLICY.weights.get(name, 1.0), name))
            share[poorest], want[poorest], left = share[poorest] + 0.25, want[poorest] - 0.25, left - 0.25
    return share


def draw(spans: Sequence[Span], glances: Sequence[Glance], rows: Sequence[tuple[str, ...]], out: Path) -> None:
    """The GPUs, what each project had beside what it was entitled to, and the table."""
    mpl.rcParams["hatch.linewidth"] = 0.6
    figure = Figure(figsize=(18, 19), layout="constrained")
    axes = figure.subplots(7, 1, height_ratios=[8, 2, 2, 2, 2, 2, 2.2])
    _draw_gpus(axes[0], spans)
    for panel, project in zip(axes[1:5], COLOURS, strict=True):
        _draw_share(panel, glances, project)
    _draw_use(axes[5], glances)
    axes[6].axis("off")
    axes[6].table(cellText=rows[1:], colLabels=rows[0], loc="center", cellLoc="center").scale(1, 1.5)
    figure.savefig(out, dpi=80)


def _draw_gpus(axes: Axes, spans: Sequence[Span]) -> None:
    free_at = [0.0] * GPUS
    per_node = NODES[0].gpus
    for span in sorted(spans, key=lambda span: (span.holding.since, span.holding.seq)):
        since, workers = span.holding.since, span.holding.workers
        free = [gpu for gpu in range(GPUS) if free_at[gpu] <= since + 1e-6]
        room = {node: sum(gpu // per_node == node for gpu in free) for node in range(len(NODES))}
        # As Ray packs: fewest nodes, of these the fullest.
        free.sort(key=lambda gpu: (-min(room[gpu // per_node], workers), room[gpu // per_node], gpu))
        for gpu in free[:workers]:
            free_at[gpu] = span.end
            axes.barh(
                gpu,
                (span.end - since) / 60,
                left=since / 60,
                height=0.9,
                color=COLOURS[span.holding.project],
                hatch="xxx" if span.outcome == "preempted" else None,
                edgecolor="black",
                linewidth={30: 0.2, 50: 0.5, 70: 1.6}[span.holding.priority],
            )
        if span.end - since > 100:
            axes.text(since / 60 + 0.1, free[0], span.holding.job_id.removeprefix("job-"), va="center", fontsize=6)
    for node in range(len(NODES) + 1):
        axes.axhline(node * per_node - 0.5, color="black", linewidth=1)
    for project, colour in COLOURS.items():
        axes.barh(0, 0, color=colour, label=project)
    axes.barh(0, 0, color="white", edgecolor="black", hatch="xxx", label="stopped to make room")
    axes.barh(0, 0, color="white", edgecolor="black", linewidth=1.6, label="priority 70")
    axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.set(ylabel="GPU (4 nodes of 8)", ylim=(GPUS - 0.5, -0.5), xlim=(0, HOUR_S / 60))


def _draw_share(axes: Axes, glances: Sequence[Glance], project: str) -> None:
    times = [glance.time / 60 for glance in glances]
    held = [glance.held[project] for glance in glances]
    demand = [sum(gpus for (_, name), gpus in glance.demand.items() if name == project) for glance in glances]
    axes.fill_between(times, held, step="post", color=COLOURS[project], alpha=0.7, label="held")
    axes.step(times, demand, where="post", color="grey", linewidth=0.8, label="held and wanted")
    fair = [entitled(glance)[project] for glance in glances]
    axes.step(times, fair, where="post", color="black", linestyle="--", linewidth=1.2, label="entitled at the moment")
    axes.set(ylabel=f"{project}\nGPUs", ylim=(0, GPUS + 1), xlim=(0, HOUR_S / 60))
    axes.legend(loc="upper right", ncols=3, fontsize=8)


def _draw_use(axes: Axes, glances: Sequence[Glance]) -> None:
    """The line that the order of a band goes by: those that lie lower are served first."""
    times = [glance.time / 60 for glance in glances]
    for project, colour in COLOURS.items():
        weight = POLICY.weights.get(project, 1.0)
        axes.plot(
            times, [glance.use.get(project, 0.0) / weight / 60 for glance in glances], color=colour, label=project
        )
    axes.set(ylabel="use / weight\ncluster minutes", xlabel="minutes", xlim=(0, HOUR_S / 60))
    axes.legend(loc="upper left", ncols=4, fontsize=8)


if __name__ == "__main__":
    main()
