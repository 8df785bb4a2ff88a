"""The user name and password for an MLflow server that asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from segfleet.errors import SettingsError

# MLflow's own names: what reads them is MLflow, at each call.
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def mlflow_login(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that hold the login; empty if none is set.

    Raises:
        SettingsError: one without the other.
    """
    found = {name: env[name] for name in (USERNAME, PASSWORD) if env.get(name)}
    if len(found) == 1:
        missing = PASSWORD if USERNAME in found else USERNAME
        raise SettingsError(f"{missing} is not set, and {next(iter(found))} is; set both or none")
    return found


def checked_uri(uri: str) -> str:
    """The address of an MLflow server, which everybody may see.

    Raises:
        SettingsError: it holds a login.
    """
    if "@" in urlsplit(uri).netloc:
        raise SettingsError(
            f"SEGFLEET_MLFLOW_URI holds a login, and the address is shown to all users; set {USERNAME} and {PASSWORD}"
        )
    return uri
