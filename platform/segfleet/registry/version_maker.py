"""Makes versions in MLflow's registry: one for each identity, whatever answers are lost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from segfleet.errors import ModelRefusedError
from segfleet.registry.registration import CONTENT_TAG, GENERATION_TAG, JOB_TAG, Registration
from segfleet.registry.sent_once import sent_once

_IDENTITY_TAGS = frozenset({JOB_TAG, GENERATION_TAG, CONTENT_TAG})
_LOGGED_MODEL = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")


class VersionMaker:
    """Makes a version, or finds the one that is there.

    Args:
        client: Of the MLflow server.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def make(self, wanted: Registration, tags: Mapping[str, str]) -> str:
        """The number of the one version of this identity.

        Args:
            wanted: The version.
            tags: As `version_tags` makes them.

        Raises:
            ModelRefusedError: the model was not logged by that run.
            MlflowException: MLflow does not answer as it should; whoever asks again gets what was made all the same.
        """
        found = self._find(wanted)
        if found is None:
            self._create(wanted, tags)
            found = self._find(wanted)
        assert found is not None, "a version that was just made is found by its tags"
        return found

    def _find(self, wanted: Registration) -> str | None:
        """The oldest version of this identity; younger ones are taken out of the registry.

        There is a younger one where a request to create was given up as lost and carried out after all, or where two
        servers were asked at once. One that has got an alias meanwhile is somebody's and stays.
        """
        tags = " and ".join(f"tags.`{tag}` = '{text}'" for tag, text in wanted.identity.items())
        query = f"name = '{wanted.name}' and {tags}"
        found = sorted(int(version.version) for version in pages(self._client.search_model_versions, query))
        if len(found) > 1:
            named = {int(number) for number in self._client.get_registered_model(wanted.name).aliases.values()}
            for number in found[1:]:
                if number not in named:
                    self._client.delete_model_version(wanted.name, str(number))
        return str(found[0]) if found else None

    def _create(self, wanted: Registration, tags: Mapping[str, str]) -> None:
        match = _LOGGED_MODEL.fullmatch(wanted.model_uri)
        if match is None:
            raise ModelRefusedError(f"{wanted.model_uri!r} is no logged model; write models:/m-ID")
        if self._client.get_logged_model(match["id"]).source_run_id != wanted.run_id:
            raise ModelRefusedError(f"model {wanted.model_uri} was not logged by run {wanted.run_id}")
        try:
            self._client.create_registered_model(wanted.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with sent_once():
            self._client.create_model_version(
                wanted.name, wanted.model_uri, run_id=wanted.run_id, tags=dict(tags), model_id=match["id"]
            )


def version_tags(wanted: Registration) -> dict[str, str]:
    """All tags of a version.

    Raises:
        ModelRefusedError: a tag uses a reserved prefix.
    """
    for name in wanted.tags:
        if name.startswith(("mlflow.", "metric.")):
            raise ModelRefusedError(f"tag {name!r} is reserved; choose a name that begins otherwise")
    # Nobody gives a version the identity of another's.
    own = {name: text for name, text in wanted.tags.items() if name not in _IDENTITY_TAGS}
    return {**own, **metric_tags(wanted.metrics), **wanted.identity}


def metric_tags(metrics: Mapping[str, float | None]) -> dict[str, str]:
    """Figures as tags; null ones are left out."""
    return {f"metric.{name}": repr(value) for name, value in metrics.items() if value is not None}


def pages(search: Any, query: str | None = None) -> Iterator[Any]:
    """All that one of MLflow's searches finds."""
    token = None
    while True:
        page = search(filter_string=query, max_results=100, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
