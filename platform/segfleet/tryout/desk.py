"""One picture at a time, and the results in memory alone, for some minutes, for whoever asked."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segfleet.errors import ModelError, SegfleetError, TryBusyError
from segfleet.queue.clock import Clock
from segfleet.tryout import child
from segfleet.tryout.shelf import Models, Shelf

KEPT_S = 600.0
_MOST_KEPT, _MOST_BYTES = 8, 64 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Try:
    """A picture that a model is tried on.

    Attributes:
        user: Who asked; nobody else sees it.
        step: What is being done; empty: it has ended.
        changed_at: When that began, or when it ended, seconds since the epoch.
        trouble: Why there is no prediction.
        prediction: None: not yet, or none.
    """

    id: str
    user: str
    model: str
    version: str
    step: str
    changed_at: float
    trouble: str = ""
    prediction: child.Prediction | None = None


class Tries:
    """Takes one picture at a time.

    Args:
        folder: For models and for the picture at hand.
        models: The registry.
        clock: Seconds since the epoch.
        predict: Takes the model's folder, the picture and a folder to work in.
    """

    def __init__(
        self,
        folder: Path,
        models: Models,
        clock: Clock,
        predict: Callable[[Path, bytes, Path], child.Prediction] = child.predict,
    ) -> None:
        self._models, self._clock, self.predict = models, clock, predict
        self._shelf = Shelf(folder, models)
        self._lock = threading.Lock()
        self._known: dict[str, Try] = {}

    def begin(self, model: str, version: str, picture: bytes, user: str) -> str:
        """Begin with a picture in a thread of its own.

        Returns:
            The id to ask for the result with; it cannot be guessed.

        Raises:
            DataError: neither a JPEG nor a PNG, or too large.
            ModelError: no such model version.
            TryBusyError: another one is under way.
        """
        child.suffix_of(picture)
        document = self._models.version(model, version)
        wanted = Try(secrets.token_urlsafe(16), user, model, version, "fetching the model", self._clock())
        with self._lock:
            self._forget()
            if any(one.step for one in self._known.values()):
                raise TryBusyError()
            self._known[wanted.id] = wanted
        threading.Thread(target=self._run, args=(wanted.id, document, picture), name="try", daemon=True).start()
        return wanted.id

    def get(self, try_id: str, user: str) -> Try:
        """How far a try has come.

        Raises:
            ModelError: there is none of that id, or no longer, or it is somebody else's.
        """
        with self._lock:
            self._forget()
            found = self._known.get(try_id)
        if found is None or found.user != user:
            raise ModelError(f"this result is gone: it is kept for {KEPT_S / 60:.0f} minutes; try the picture again")
        return found

    def _run(self, try_id: str, document: Mapping[str, Any], picture: bytes) -> None:
        try:
            with self._shelf.workplace() as work:
                folder = self._shelf.model(document)
                self._change(try_id, step="predicting")
                prediction = self.predict(folder, picture, Path(work))
            self._change(try_id, step="", prediction=prediction)
        except SegfleetError as error:
            self._change(try_id, step="", trouble=str(error))
        except Exception:
            _log.exception("trying a picture failed")
            self._change(try_id, step="", trouble="the service failed on this picture; its log says why")

    def _change(self, try_id: str, **values: Any) -> None:
        with self._lock:
            self._known[try_id] = replace(self._known[try_id], changed_at=self._clock(), **values)

    def _forget(self) -> None:
        """Let go what is old or too much; the lock is held."""
        kept: dict[str, Try] = {}
        size, now = 0, self._clock()
        for one in sorted(self._known.values(), key=lambda one: -one.changed_at):
            size += len(one.prediction.overlay) if one.prediction else 0
            is_fresh = now - one.changed_at <= KEPT_S and len(kept) < _MOST_KEPT and (size <= _MOST_BYTES or not kept)
            if one.step or is_fresh:
                kept[one.id] = one
        self._known = kept
