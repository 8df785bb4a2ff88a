"""What a cluster has left, node by node, and whether a gang fits into it.

Ray decides which worker lands where. This packs as Ray's PACK strategy does (fewest nodes first), so its answer to
"does it fit" is Ray's, but for holes that an unlucky order of starts and ends has left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from segfleet.queue.scheduling.values import Gang, Holding, Node

# How many of a gang's workers stand on which node.
Places = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """CPUs and GPUs that are left on each node."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> int:
        """Over all nodes; below 0 if the holders have more than there is, as after the loss of a node."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Over all nodes, like `cpus`."""
        return sum(node.gpus for node in self.nodes)

    def room(self, gang: Gang) -> int:
        """How many of the gang's workers would fit, up to its most."""
        return min(sum(workers_on(node, gang) for node in self.nodes), self._owed(gang))

    def place(self, gang: Gang, workers: int) -> Places | None:
        """Where so many workers would stand: on the fewest nodes, of these on the fullest; None if they do not fit."""
        if self._owed(gang) < workers:
            return None
        fitting = []
        for i, node in enumerate(self.nodes):
            if count := min(workers_on(node, gang), workers):
                fitting.append((-count, node.gpus, node.cpus, i))
        if -sum(count for count, *_ in fitting) < workers:
            return None
        places = []
        for count, _, _, i in sorted(fitting):
            taken = min(-count, workers)
            places.append((i, taken))
            workers -= taken
            if not workers:
                break
        return tuple(places)

    def squeeze(self, gang: Gang, workers: int) -> Places:
        """Where workers are counted that the nodes as they are cannot hold: where most is left, which goes below 0."""
        left, counts = list(self.nodes), dict.fromkeys(range(len(self.nodes)), 0)
        for _ in range(workers if left else 0):
            i = max(counts, key=lambda i: (workers_on(left[i], gang), left[i].gpus * bool(gang.gpus), left[i].cpus))
            left[i] = _less(left[i], gang, 1)
            counts[i] += 1
        return tuple((i, count) for i, count in counts.items() if count)

    def minus(self, gang: Gang, places: Places) -> Pool:
        """What is left beside workers at these places."""
        nodes = list(self.nodes)
        for i, count in places:
            nodes[i] = _less(nodes[i], gang, count)
        return Pool(tuple(nodes))

    def plus(self, gang: Gang, places: Places) -> Pool:
        """What is left when workers at these places are gone."""
        return self.minus(gang, tuple((i, -count) for i, count in places))

    def without(self, gang: Gang, workers: int) -> Pool | None:
        """What is left beside so many workers; None if they do not fit."""
        places = self.place(gang, workers)
        return None if places is None else self.minus(gang, places)

    def meet(self, other: Pool) -> Pool:
        """What both have left."""
        pairs = zip(self.nodes, other.nodes, strict=True)
        return Pool(tuple(Node(min(a.cpus, b.cpus), min(a.gpus, b.gpus)) for a, b in pairs))

    def _owed(self, gang: Gang) -> int:
        """How many workers the sums allow: less than the nodes seem to have room for where another one is overdrawn."""
        most = gang.max_workers
        if gang.cpus:
            most = min(most, self.cpus // gang.cpus)
        if gang.gpus:
            most = min(most, self.gpus // gang.gpus)
        return max(most, 0)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A holder and where it is thought to stand."""

    holding: Holding
    places: Places


@dataclass(slots=True)
class Layout:
    """Who stands where in a cluster. Nobody moves while a pass goes on, so room only grows as tenants leave.

    Attributes:
        nodes: The cluster when empty.
        pool: What is free now.
    """

    nodes: tuple[Node, ...]
    pool: Pool
    tenants: list[Tenant]

    @classmethod
    def of(cls, nodes: Iterable[Node], holdings: Iterable[Holding]) -> Layout:
        """Lay the holders into an empty cluster; the largest workers first, so that the rest stays whole."""
        nodes = tuple(nodes)
        layout = cls(nodes, Pool(nodes), [])
        for holder in sorted(holdings, key=lambda h: (-h.gang.gpus, -h.gang.cpus, h.seq, h.job_id, h.workers)):
            places = layout.pool.place(holder.gang, holder.workers)
            layout.add(holder, layout.pool.squeeze(holder.gang, holder.workers) if places is None else places)
        return layout

    def add(self, holding: Holding, places: Places) -> None:
        """One more tenant."""
        self.pool = self.pool.minus(holding.gang, places)
        self.tenants.append(Tenant(holding, places))

    def extend(self, job_id: str, workers: int, places: Places) -> None:
        """Let a tenant have more workers."""
        i = next(i for i, tenant in enumerate(self.tenants) if tenant.holding.job_id == job_id)
        holding = self.tenants[i].holding
        self.pool = self.pool.minus(holding.gang, places)
        grown = replace(holding, workers=holding.workers + workers)
        self.tenants[i] = Tenant(grown, self.tenants[i].places + places)

    def stop(self, job_ids: Collection[str]) -> None:
        """Count these tenants as told to make room."""
        self.tenants = [
            replace(tenant, holding=replace(tenant.holding, is_stopping=True))
            if tenant.holding.job_id in job_ids
            else tenant
            for tenant in self.tenants
        ]


def vacated(pool: Pool, tenants: Iterable[Tenant]) -> Pool:
    """What is left when these tenants are gone."""
    for tenant in tenants:
        pool = pool.plus(tenant.holding.gang, tenant.places)
    return pool


def workers_on(node: Node, gang: Gang) -> int:
    """How many of a gang's workers a node has room for, up to the gang's most."""
    by_cpus = node.cpus // gang.cpus if gang.cpus else gang.max_workers
    by_gpus = node.gpus // gang.gpus if gang.gpus else gang.max_workers
    return max(0, min(by_cpus, by_gpus, gang.max_workers))


def _less(node: Node, gang: Gang, count: int) -> Node:
    return Node(node.cpus - count * gang.cpus, node.gpus - count * gang.gpus)
