"""The client's verbs of the model registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from segfleet.archive import unpack
from segfleet.connection import Connection, Document, as_document, path_of
from segfleet.errors import ModelError
from segfleet.wire import DIGEST

_MODEL_REF = re.compile(r"(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>[0-9]+))")


class ModelCalls:
    """Look, register, fetch; `segfleet.client.Client` brings the connection."""

    _connection: Connection

    def models(self) -> list[Document]:
        """Registered models: name, versions' number, aliases, newest version."""
        return self._connection.items(self._connection.get("/models"), "models")

    def model(self, name_ref: str) -> Document:
        """A registered model (NAME) with its versions, or one version of it (NAME@ALIAS, NAME/VERSION).

        Raises:
            ModelError: no such model, version or alias.
        """
        if "@" in name_ref or "/" in name_ref:
            return as_document(self._connection.get(_version_path(name_ref)))
        return as_document(self._connection.get(path_of("models", name_ref)))

    def register_model(
        self,
        name: str,
        *,
        run_id: str,
        model_uri: str,
        content_digest: str,
        alias: str | None = None,
        metrics: Mapping[str, float | None] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Document:
        """Make a version of a model that was logged to MLflow by somebody else than a job.

        Args:
            name: Registered model; made if there is none.
            run_id: MLflow run that logged it.
            model_uri: `models:/m-...`, as MLflow named it.
            content_digest: SHA-256, in hexadecimal, of all that the model consists of; the same content is the same
                version.
            alias: Moved to the version; None moves none.
            metrics: Stay with the version.
            tags: Stay with the version.

        Returns:
            {"name", "version", "alias"}.

        Raises:
            ModelError: MLflow has no such logged model.
            ModelRefusedError: the run is not the model's, or a tag uses a reserved prefix.
            ServiceError: a name or another field is malformed.
        """
        body = {
            "run_id": run_id,
            "model_uri": model_uri,
            "content_digest": content_digest,
            "alias": alias,
            "metrics": dict(metrics or {}),
            "tags": dict(tags or {}),
        }
        return as_document(self._connection.post(path_of("models", name, "versions"), body))

    def pull(self, name_ref: str, out: str | Path) -> Path:
        """Fetch the files of a model version into a new folder; an interrupted pull leaves no such folder.

        Args:
            name_ref: NAME@ALIAS or NAME/VERSION.
            out: The folder to make; must not exist.

        Returns:
            The folder.

        Raises:
            ModelError: no such version, or `out` exists.
            DataError: the archive is damaged or unsafe, or the disk is full.
        """
        path = _version_path(name_ref) + "/archive"
        with self._connection.stream(path) as answer:
            return unpack(answer.iter_bytes(), Path(out), answer.headers.get(DIGEST, ""))


def _version_path(name_ref: str) -> str:
    match = _MODEL_REF.fullmatch(name_ref)
    if match is None:
        raise ModelError(f"{name_ref!r} names no version; write NAME@ALIAS or NAME/VERSION")
    return path_of("models", match["name"], f"@{match['alias']}" if match["alias"] else match["version"])
