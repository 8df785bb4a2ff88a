"""Find free ports on the loopback interface."""

from __future__ import annotations

import random
import socket

from segfleet.errors import SettingsError

# Below the range from which the system takes ports of outgoing connections: a port found free stays free.
_LOWEST, _HIGHEST = 12_000, 30_000


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def require_free(port: int) -> None:
    """Refuse a port that cannot be listened on.

    Raises:
        SettingsError: naming the port.
    """
    if not is_free(port):
        raise SettingsError(f"port {port} of 127.0.0.1 is in use or reserved; choose another with --port")


def free_ports(count: int, *, preferred: tuple[int, ...] = (), taken: frozenset[int] = frozenset()) -> list[int]:
    """Different free ports.

    Args:
        count: How many.
        preferred: Taken first, in this order, as far as they are free.
        taken: Never returned.

    Raises:
        SettingsError: there are not that many.
    """
    pool = random.SystemRandom().sample(range(_LOWEST, _HIGHEST), k=20 * count + 100)
    found: list[int] = []
    for port in (*preferred, *pool):
        if len(found) == count:
            return found
        if port not in taken and port not in found and port <= 65_535 and is_free(port):
            found.append(port)
    raise SettingsError(f"no {count} free ports between {_LOWEST} and {_HIGHEST} of 127.0.0.1")
