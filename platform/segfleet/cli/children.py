"""Commands that need torch or the data tools run as processes of their own; the command line stays light."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from segfleet.errors import SettingsError
from segfleet.settings import child_environment


def require(command: str, modules: Sequence[str], extra: str) -> None:
    """Refuse a command whose optional dependencies are not installed.

    Raises:
        SettingsError: naming what is missing and the extra that holds it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise SettingsError(
            f"'segfleet {command}' needs {', '.join(missing)}, which the base install leaves out; "
            f"run in segfleet's checkout: pip install '.[{extra}]'"
        )


def run_module(module: str, arguments: Sequence[str], changes: Mapping[str, str | None] | None = None) -> int:
    """Run `python -P -m module` with this process's stdin, stdout and stderr.

    Without -P a Python file in the user's folder would be taken for a module of that name.

    Args:
        module: The module.
        arguments: Its command line.
        changes: Changes to the environment.

    Returns:
        Its exit code; 128 + N if signal N ended it.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments], env=child_environment(changes or {})
    ) as child:
        # Ctrl-C reaches the child by itself: it decides, and this process only waits for its answer.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = child.wait()
        finally:
            signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def options(**values: object) -> list[str]:
    """`--name value` for each value that is not None; `--name` alone for True, nothing for False."""
    arguments: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif value is not None and value is not False:
            arguments += [flag, str(value)]
    return arguments
