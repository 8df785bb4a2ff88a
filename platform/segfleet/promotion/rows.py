"""SQL of gates and promotions, inside one transaction of the queue's database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from segfleet.promotion.values import OPEN, Promotion, PromotionState
from segfleet.queue.model import Document
from segfleet.queue.states import JobState
from segfleet.queue.tables import dependencies, gates, jobs, promotions

# An evaluation older than that many later ones of the same version is made again.
_LATEST = 50


class SlotTakenError(Exception):
    """Another promotion is moving the alias; nothing of this transaction was stored."""


class PromotionRows:
    """Reads and writes of gates and promotions.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def gates(self, model: str) -> dict[str, Row[Any]]:
        """Rows of a model's gates by alias."""
        query = select(gates).where(gates.c.model == model).order_by(gates.c.alias)
        return {row.alias: row for row in self._connection.execute(query)}

    def one_at_a_time(self, model: str, alias: str) -> None:
        """Let others who ask for this alias wait for the end of the transaction; SQLite has one writer anyway."""
        if self._connection.dialect.name != "sqlite":
            self._connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"{model}@{alias}"))))

    def gate(self, model: str, alias: str) -> Document | None:
        """The rules of an alias; None: it has none."""
        same = (gates.c.model == model) & (gates.c.alias == alias)
        return self._connection.scalar(select(gates.c.rules).where(same))

    def put_gate(self, values: Document) -> None:
        """Replace the rules of an alias."""
        self.remove_gate(values["model"], values["alias"])
        self._connection.execute(insert(gates).values(values))

    def remove_gate(self, model: str, alias: str) -> bool:
        """Take the rules of an alias away; False: there were none."""
        same = (gates.c.model == model) & (gates.c.alias == alias)
        return bool(self._connection.execute(delete(gates).where(same)).rowcount)

    def insert(self, values: Document) -> Promotion:
        """Add a promotion; `seq` is the database's."""
        self._connection.execute(insert(promotions).values(values))
        made = self.promotion(values["id"])
        assert made is not None
        return made

    def promotion(self, promotion_id: str) -> Promotion | None:
        """One promotion."""
        return self._first(select(promotions).where(promotions.c.id == promotion_id))

    def of_origin(self, origin: str) -> Promotion | None:
        """The promotion that a job has asked for."""
        return self._first(select(promotions).where(promotions.c.origin == origin))

    def open_of(self, model: str, alias: str, version: str) -> Promotion | None:
        """The promotion of this version that is under way."""
        c = promotions.c
        same = (c.model == model) & (c.alias == alias) & (c.version == version)
        return self._first(select(promotions).where(same & c.state.in_(OPEN)).order_by(c.seq.desc()))

    def open(self) -> list[Promotion]:
        """All that are under way, the oldest first."""
        query = select(promotions).where(promotions.c.state.in_(OPEN)).order_by(promotions.c.seq)
        return [_promotion(row) for row in self._connection.execute(query)]

    def promotions(self, model: str, limit: int, before: int | None = None) -> list[Promotion]:
        """The newest promotions of a model whose `seq` is lower than `before`."""
        c = promotions.c
        query = select(promotions).where(c.model == model).order_by(c.seq.desc()).limit(limit)
        query = query if before is None else query.where(c.seq < before)
        return [_promotion(row) for row in self._connection.execute(query)]

    def last_promoted(self, model: str, alias: str) -> Promotion | None:
        """The promotion by which the alias was moved last."""
        c = promotions.c
        same = (c.model == model) & (c.alias == alias) & (c.state == PromotionState.PROMOTED)
        return self._first(select(promotions).where(same).order_by(c.updated_at.desc(), c.seq.desc()))

    def change(self, promotion: Promotion, changes: Document) -> Promotion | None:
        """Write changed fields, if state and mover are still as they were read; None: they are not.

        Raises:
            SlotTakenError: the changes take the alias' slot, which another promotion has.
        """
        c = promotions.c
        same = (c.id == promotion.id) & (c.state == promotion.state) & c.mover.is_not_distinct_from(promotion.mover)
        try:
            changed = self._connection.execute(update(promotions).where(same).values(changes))
        except IntegrityError as error:
            raise SlotTakenError from error
        return self.promotion(promotion.id) if changed.rowcount == 1 else None

    def evaluations(self, version: str) -> list[Row[Any]]:
        """Id, spec and result of the latest evaluations of NAME/VERSION that have succeeded, the newest first."""
        c = jobs.c
        ended = (c.kind == "evaluate") & (c.state == JobState.SUCCEEDED)
        same = c.result["model_version"].as_string() == version
        query = select(c.id, c.spec, c.result).where(ended & same).order_by(c.seq.desc()).limit(_LATEST)
        return list(self._connection.execute(query))

    def users_of(self, version: str, job_id: str | None) -> list[str]:
        """Ids of the jobs that are under way and evaluate NAME/VERSION, or follow the job that made it."""
        c = jobs.c
        under_way = c.state.not_in((JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED))
        evaluates = (c.kind == "evaluate") & (c.spec["model"].as_string() == version)
        followers = select(dependencies.c.job_id).where(dependencies.c.parent_id == (job_id or ""))
        query = select(c.id).where(under_way & (evaluates | c.id.in_(followers))).order_by(c.seq)
        return list(self._connection.scalars(query))

    def _first(self, query: Select[Any]) -> Promotion | None:
        row = self._connection.execute(query.limit(1)).one_or_none()
        return None if row is None else _promotion(row)


def _promotion(row: Row[Any]) -> Promotion:
    fields = dict(row._mapping)
    fields.pop("slot")
    return Promotion(**{**fields, "state": PromotionState(row.state)})
