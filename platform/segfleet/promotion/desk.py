"""Promotions with their effects: asked, evaluated, decided, and the alias moved.

A promotion is a row that is written before anything else happens, and each step of it can be repeated: whatever process
dies, another one goes on. The alias lives in MLflow, which knows no compare-and-set, so it is moved in three writes:
the row takes the alias' slot (a unique column: of several promotions one gets it) and says `moving`; then MLflow is
asked for the holder again and told to move the alias; then the row is final and gives the slot back. Every move by this
project goes through here, so that nothing of ours can move the alias in between.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segfleet.errors import ModelError, ModelRefusedError, QuotaExceededError, ServiceError, SpecError
from segfleet.promotion.evaluations import (
    EvaluationFailedError,
    as_plain,
    evaluation_spec,
    find_evaluation,
    read_evaluation,
    submit_evaluation,
)
from segfleet.promotion.gate import Gate, Verdict, decide
from segfleet.promotion.rows import SlotTakenError
from segfleet.promotion.values import CANDIDATE, HOLDER, Promotion, PromotionState, both, new_promotion_id
from segfleet.queue.model import Document
from segfleet.queue.service import Queue

if TYPE_CHECKING:
    from segfleet.registry.registry import Registry

# Longer than a call to MLflow can last with all its repetitions: a move that is older is nobody's any more.
TAKE_OVER_S = 300.0
# A request waits no longer for one that talks to MLflow.
_TURN_S = 2.0
_AGAIN = "promote again"
_log = logging.getLogger(__name__)


class Promotions:
    """Gates and promotions of one service; safe to share between threads.

    Args:
        queue: Where evaluations run.
        registry: Where the aliases are.
    """

    def __init__(self, queue: Queue, registry: Registry) -> None:
        self._queue, self._registry = queue, registry
        self._instance = secrets.token_hex(8)
        # One service on the database: a move of another process is one of a dead process.
        self._take_over_s = TAKE_OVER_S if queue.store.is_shared else 0.0
        self._moving = threading.Lock()

    # Gates

    def gates(self, model: str) -> list[Document]:
        """The gates of a model: {"model", "alias", "rules", "set_by", "set_at"}."""
        with self._queue.store.read() as tx:
            return [dict(row._mapping) for row in tx.promotions.gates(model).values()]

    def set_gate(self, model: str, alias: str, gate: Gate, who: str) -> Document:
        """Replace an alias' gate; promotions that are under way have been asked under other rules, and go stale.

        Raises:
            SpecError: the rule makes no valid evaluation.
        """
        evaluation_spec(gate, f"{model}/1", "gate", "gate")
        rules = gate.model_dump(mode="json")
        values = {"model": model, "alias": alias, "rules": rules, "set_by": who, "set_at": self._queue.clock()}
        with self._queue.store.write() as tx:
            tx.promotions.put_gate(values)
        return values

    def remove_gate(self, model: str, alias: str) -> None:
        """Take an alias' gate away.

        Raises:
            ModelError: it has none.
        """
        with self._queue.store.write() as tx:
            if not tx.promotions.remove_gate(model, alias):
                raise ModelError(f"alias {alias!r} of {model!r} has no gate; 'segfleet models gate {model}' shows all")

    # Promotions

    def list(self, model: str, limit: int, before: int | None = None) -> list[Promotion]:
        """A model's promotions, the newest first; those whose `seq` is lower than `before`."""
        with self._queue.store.read() as tx:
            return tx.promotions.promotions(model, limit, before)

    def get(self, model: str, promotion_id: str) -> Promotion:
        """One promotion.

        Raises:
            ModelError: the model has none of that id.
        """
        with self._queue.store.read() as tx:
            found = tx.promotions.promotion(promotion_id)
        if found is None or found.model != model:
            raise ModelError(f"{model!r} has no promotion {promotion_id!r}; 'segfleet models show {model}' lists them")
        return found

    def ask(self, model: str, alias: str, ref: str, *, who: str, project: str, origin: str | None = None) -> Promotion:
        """Let a version have an alias: at once if the alias has no gate, else when it has passed.

        Asked again while it is under way, it is the same promotion; a version that has the alias keeps it.

        Args:
            model: Registered model.
            alias: That it is to have.
            ref: The version: its number or `@alias`.
            who: Who asks, and owns the evaluations.
            project: Of the evaluations.
            origin: Of a job that asks; each origin gets one promotion.

        Raises:
            ModelError: no such model, version or alias.
            ServiceError: MLflow does not answer; what has begun goes on when it does.
        """
        version = str(self._registry.version(model, ref)["version"])
        holder = self._registry.holder(model, alias)
        with self._queue.store.write() as tx:
            rows, now = tx.promotions, self._queue.clock()
            rows.one_at_a_time(model, alias)
            known = (rows.of_origin(origin) if origin else None) or rows.open_of(model, alias, version)
            last = rows.last_promoted(model, alias) if holder == version else None
            if known is None and last is not None and last.version == version:
                known = last
            has_it = known is None and holder == version
            promotion = known or rows.insert(
                {
                    "id": new_promotion_id(),
                    "model": model,
                    "alias": alias,
                    "version": version,
                    "holder": holder,
                    "who": who,
                    "project": project,
                    "origin": origin,
                    "state": PromotionState.PROMOTED if has_it else PromotionState.PENDING,
                    "why": "it has the alias already" if has_it else "asked",
                    "gate": rows.gate(model, alias),
                    "evaluations": both(),
                    "figures": both(),
                    "created_at": now,
                    "updated_at": now,
                }
            )
        return self.advance(promotion)

    def advance_all(self) -> None:
        """Take every promotion that is under way as far as it goes now; trouble with one holds up no other."""
        with self._queue.store.read() as tx:
            under_way = tx.promotions.open()
        for promotion in under_way:
            try:
                self.advance(promotion)
            except ServiceError as error:
                _log.warning("%s: %s", promotion.id, error)
            except Exception:
                _log.exception("%s: cannot go on", promotion.id)

    def advance(self, promotion: Promotion) -> Promotion:
        """Take a promotion as far as it goes now.

        Raises:
            ServiceError: MLflow does not answer.
        """
        if not promotion.is_open:
            return promotion
        if promotion.state == PromotionState.MOVING:
            return self._move(promotion)
        gate = promotion.rules
        if gate is None:
            return self._begin_move(promotion, "the alias has no gate", {})
        try:
            return self._compare(self._with_evaluations(promotion, gate), gate)
        except QuotaExceededError as error:
            return self._note(promotion, f"waits to evaluate: {error}")
        except (SpecError, ModelError, EvaluationFailedError) as error:
            return self._end(promotion, PromotionState.REFUSED, str(error))

    def _with_evaluations(self, promotion: Promotion, gate: Gate) -> Promotion:
        """The promotion with a job for each side."""
        jobs: dict[str, str | None] = dict(promotion.evaluations)
        for side, version in ((CANDIDATE, promotion.version), (HOLDER, promotion.holder)):
            if version is None or jobs[side] is not None:
                continue
            reference = f"{promotion.model}/{version}"
            run_id = self._registry.version(promotion.model, version)["run_id"]
            jobs[side] = find_evaluation(self._queue, gate, reference, run_id) or submit_evaluation(
                self._queue, promotion, gate, reference, side
            )
        if jobs == promotion.evaluations:
            return promotion
        said = ", ".join(f"{side} by {job}" for side, job in jobs.items() if job)
        return self._change(promotion, {"evaluations": jobs, "why": f"evaluates {said}"})

    def _compare(self, promotion: Promotion, gate: Gate) -> Promotion:
        """Decide, once both figures are there."""
        if promotion.state != PromotionState.PENDING:
            return promotion
        found: dict[str, Any] = {}
        jobs: dict[str, str | None] = dict(promotion.evaluations)
        for side, job_id in jobs.items():
            found[side] = None if job_id is None else read_evaluation(self._queue.get(job_id), gate)
            if job_id is not None and found[side] is None:
                return promotion
        figures = {"figures": both(as_plain(found[CANDIDATE]), as_plain(found[HOLDER]))}
        if trouble := self._outdated(promotion):
            return self._end(promotion, PromotionState.STALE, trouble, figures)
        verdict: Verdict = decide(gate, found[CANDIDATE], found[HOLDER])
        if not verdict.passed:
            return self._end(promotion, PromotionState.REFUSED, verdict.why, figures)
        return self._begin_move(promotion, verdict.why, figures)

    def _outdated(self, promotion: Promotion) -> str:
        """Why a comparison does not count any more; empty if it does."""
        if trouble := self._other_gate(promotion):
            return trouble
        return self._other_holder(promotion, self._registry.holder(promotion.model, promotion.alias))

    def _other_gate(self, promotion: Promotion) -> str:
        with self._queue.store.read() as tx:
            rules = tx.promotions.gate(promotion.model, promotion.alias)
        return "" if rules == promotion.gate else f"the gate was changed meanwhile; {_AGAIN}"

    def _other_holder(self, promotion: Promotion, holder: str | None) -> str:
        if holder == promotion.holder:
            return ""
        now, then = (f"version {version}" if version else "nobody" for version in (holder, promotion.holder))
        return f"@{promotion.alias} is held by {now} now, and the candidate was compared with {then}; {_AGAIN}"

    # The move

    def _begin_move(self, promotion: Promotion, why: str, more: Document) -> Promotion:
        """Take the alias' slot, and move; while somebody else has the slot, the promotion waits."""
        if trouble := self._other_gate(promotion):
            return self._end(promotion, PromotionState.STALE, trouble, more)
        slot = f"{promotion.model}@{promotion.alias}"
        moving = {"state": PromotionState.MOVING, "why": why, "slot": slot, "mover": self._instance, **more}
        with self._turn() as is_mine:
            if not is_mine:
                return promotion
            try:
                begun = self._change(promotion, moving)
            except SlotTakenError:
                return promotion
            return self._finish_move(begun)

    def _move(self, promotion: Promotion) -> Promotion:
        """Go on with a move that some process has begun."""
        with self._turn() as is_mine:
            if not is_mine:
                return promotion
            is_ours = promotion.mover == self._instance
            if not is_ours and self._queue.clock() - promotion.updated_at < self._take_over_s:
                return promotion
            # Each try begins the time anew after which another process may take over.
            return self._finish_move(self._change(promotion, {"mover": self._instance}))

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """The right to move aliases in this process; False: another thread has it, and the worker comes again."""
        is_mine = self._moving.acquire(timeout=_TURN_S)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._moving.release()

    def _finish_move(self, promotion: Promotion) -> Promotion:
        """With the slot and under the lock: nothing else of this project touches the alias now."""
        with self._queue.store.read() as tx:
            promotion = tx.promotions.promotion(promotion.id) or promotion
        if promotion.state != PromotionState.MOVING or promotion.mover != self._instance:
            return promotion
        holder = self._registry.holder(promotion.model, promotion.alias)
        if holder != promotion.version:
            trouble = self._other_gate(promotion)
            if not trouble and promotion.gate is not None:
                trouble = self._other_holder(promotion, holder)
            if trouble:
                return self._end(promotion, PromotionState.STALE, trouble)
            try:
                self._registry.set_alias(promotion.model, promotion.alias, promotion.version)
            except ModelError as error:
                return self._end(promotion, PromotionState.REFUSED, str(error))
        _log.info("%s: %s@%s is version %s", promotion.id, promotion.model, promotion.alias, promotion.version)
        return self._end(promotion, PromotionState.PROMOTED, promotion.why)

    # Deletion

    def delete_version(self, model: str, ref: str) -> Document:
        """Take a version out of the registry, unless something needs it.

        Returns:
            The version as it was.

        Raises:
            ModelError: no such version.
            ModelRefusedError: an alias points to it, or a promotion or jobs that are under way need it.
        """
        # No alias is moved to it meanwhile.
        with self._moving:
            version = self._registry.version(model, ref)
            if version["aliases"]:
                held = ", ".join(f"@{alias}" for alias in version["aliases"])
                raise ModelRefusedError(f"{model}/{version['version']} is {held}; promote another version first")
            with self._queue.store.read() as tx:
                users = tx.promotions.users_of(f"{model}/{version['version']}", version.get("job"))
                users += [
                    row.id
                    for row in tx.promotions.open()
                    if row.model == model and version["version"] in (row.version, row.holder)
                ]
            if users:
                needed = f"{model}/{version['version']} is needed by {', '.join(users)}"
                raise ModelRefusedError(f"{needed}; wait for their end, or cancel them")
            self._registry.delete_version(model, version["version"])
            return version

    # Inside

    def _note(self, promotion: Promotion, why: str) -> Promotion:
        return promotion if promotion.why == why else self._change(promotion, {"why": why})

    def _end(self, promotion: Promotion, state: PromotionState, why: str, more: Document | None = None) -> Promotion:
        return self._change(promotion, {"state": state, "why": why, "slot": None, "mover": None, **(more or {})})

    def _change(self, promotion: Promotion, changes: Document) -> Promotion:
        """The promotion with the changes, or as somebody else has changed it meanwhile."""
        with self._queue.store.write() as tx:
            changed = tx.promotions.change(promotion, {**changes, "updated_at": self._queue.clock()})
            return changed or tx.promotions.promotion(promotion.id) or promotion
