"""Where a job's checkpoints lie; light to import."""

from __future__ import annotations

from segfleet.settings import data_settings
from segfleet_jobs.attempt import Grant


def checkpoint_home(grant: Grant, *below: str) -> str:
    """The job's folder, or its address below SEGFLEET_CHECKPOINTS, as the driver's environment has it.

    Args:
        grant: Of the attempt.
        below: Where in it, such as ("trials", "3").

    Raises:
        SettingsError: the environment's settings are malformed.
    """
    base = data_settings().checkpoints
    return "/".join((grant.storage if base is None else f"{base}/{grant.job_id}", *below))
