"""The Kubernetes API as far as launching needs it, spoken with httpx."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import httpx

from segfleet.cluster.launcher import ClusterUnreachableError
from segfleet.errors import LaunchError, SettingsError
from segfleet.kube_settings import KubeSettings
from segfleet.queue.model import clean_text

_TIMEOUT = httpx.Timeout(10.0, connect=2.0)
_PAGE = 500
# A list that is outrun by the store's compaction begins anew so often.
_LIST_TRIES = 3


class KubeApi:
    """One API server, seen by one service account.

    Args:
        settings: Address, token and authority.
        transport: Replaces the network, for tests.

    Raises:
        SettingsError: the file of the authority's certificate cannot be used.
    """

    def __init__(self, settings: KubeSettings, transport: httpx.BaseTransport | None = None) -> None:
        self._settings = settings
        self._http = httpx.Client(
            base_url=settings.url,
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=False,
            verify=_trust(settings) if transport is None and settings.url.startswith("https:") else True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request; the answer whatever its status, but for those that are about the service itself.

        Raises:
            ClusterUnreachableError: no answer, or the token is not accepted.
        """
        try:
            headers = {"Authorization": f"Bearer {self._settings.token_file.read_text(encoding='utf-8').strip()}"}
            answer = self._http.request(method, path, headers=headers, **request)
        except OSError as error:
            raise ClusterUnreachableError(
                f"the token of Kubernetes, {str(self._settings.token_file)!r}, cannot be read: {error.strerror}"
            ) from error
        except httpx.HTTPError as error:
            raise ClusterUnreachableError(
                f"Kubernetes at {self._settings.url} cannot be reached ({type(error).__name__})"
            ) from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise ClusterUnreachableError(
                f"Kubernetes at {self._settings.url} does not accept the token in {str(self._settings.token_file)!r}"
            )
        return answer

    def get(self, path: str, **params: Any) -> dict[str, Any] | None:
        """An object; None: there is none.

        Raises:
            LaunchError: the API server failed, or cannot be reached (then ClusterUnreachableError).
        """
        answer = self.ask("GET", path, params=params)
        return None if answer.status_code == httpx.codes.NOT_FOUND else document(answer)

    def items(self, path: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind, page by page.

        Raises:
            LaunchError: as `get`; also if the list changes faster than it can be read.
        """
        for _ in range(_LIST_TRIES):
            try:
                return list(self._pages(path, selector))
            except _ExpiredError:
                continue
        raise LaunchError(f"Kubernetes lets the list {path} expire again and again while it is read")

    def _pages(self, path: str, selector: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            params = {"limit": _PAGE, "labelSelector": selector, "continue": token}
            answer = self.ask("GET", path, params={key: value for key, value in params.items() if value})
            if answer.status_code == httpx.codes.GONE:
                raise _ExpiredError
            page = document(answer)
            yield from page.get("items") or ()
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return


class _ExpiredError(Exception):
    """The rest of a list is not to be had any more."""


def document(answer: httpx.Response) -> dict[str, Any]:
    """The object in an answer.

    Raises:
        LaunchError: the answer is a refusal, or no object.
    """
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not answer.is_success:
        raise failed(answer)
    if not isinstance(found, dict):
        raise LaunchError(f"{answer.url} does not answer like Kubernetes; check SEGFLEET_KUBE_URL")
    return found


def failed(answer: httpx.Response) -> LaunchError:
    """What a refusal says; nothing of it is the end: the next turn asks again."""
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return LaunchError("Kubernetes asks for fewer requests (HTTP 429); the next turn tries again")
    advice = "; see the roles in docker/kubernetes" if answer.status_code == httpx.codes.FORBIDDEN else ""
    return LaunchError(
        f"Kubernetes answers {answer.url.path} with HTTP {answer.status_code}: {words_of(answer)}{advice}"
    )


def words_of(answer: httpx.Response) -> str:
    """The message of a refusal."""
    return _field(answer, "message") or "no explanation"


def already_exists(answer: httpx.Response) -> bool:
    """Whether an object of that name is there, as opposed to a conflict of versions, which has the same status."""
    return answer.status_code == httpx.codes.CONFLICT and _field(answer, "reason") == "AlreadyExists"


def _field(answer: httpx.Response, name: str) -> str:
    try:
        return clean_text(str(answer.json().get(name) or ""))[:300]
    except (ValueError, AttributeError):
        return ""


def _trust(settings: KubeSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(settings.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"SEGFLEET_KUBE_CA_FILE={str(settings.ca_file)!r} cannot be used: {error}") from error
