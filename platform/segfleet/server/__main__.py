"""The service's process: `python -m segfleet.server`.

It holds the queue's dispatcher in a thread and the HTTP routes on the loopback interface. It may be killed at any
moment: everything it knows is in the database, and jobs on the cluster go on without it. Several may share one
PostgreSQL database; one of them leads and dispatches.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from segfleet.access.tokens import HOME_PREFIX
from segfleet.cluster.kube_launcher import KubeLauncher
from segfleet.cluster.launcher import Launcher
from segfleet.errors import SegfleetError, SettingsError
from segfleet.mlflow_login import PASSWORD
from segfleet.promotion.worker import promoting
from segfleet.queue.clock import steady_clock
from segfleet.queue.leadership import Office
from segfleet.queue.service import Queue
from segfleet.queue.store import Store
from segfleet.registry.registry import Registry
from segfleet.server.api import create_app
from segfleet.server.connections import ImpatientProtocol
from segfleet.server.leading import Leading
from segfleet.server.log import configure
from segfleet.server.public import opened, tcp_socket
from segfleet.server.services import Services
from segfleet.settings import Home, Settings, ensure_token, read_token
from segfleet.webhooks.courier import Courier, delivering
from segfleet.webhooks.post import Post

HOST = "127.0.0.1"
_DRAIN_S = 4
_EXIT_S = 8.0
_MAX_CONNECTIONS = 500
_UVICORN: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "ws": "none",
    "http": ImpatientProtocol,
    "limit_concurrency": _MAX_CONNECTIONS,
    "timeout_graceful_shutdown": _DRAIN_S,
}
_log = logging.getLogger("segfleet.server")


def main() -> int:
    """Run until SIGTERM or SIGINT.

    Returns:
        0: asked to stop, 1: the dispatcher died, 2: it could not start.
    """
    if len(sys.argv) > 1:
        print(
            f"error: {sys.argv[1]!r} means nothing here; the service takes its settings from the environment: "
            "docs/operations.md",
            file=sys.stderr,
        )
        return 2
    try:
        settings = Settings.from_environment()
        settings.home.create()
        # MLflow reads its time limits from the environment of the process at each call.
        os.environ.update({name: text for name, text in settings.job_env.items() if name.startswith("MLFLOW_")})
        with _only_service(settings.home), closing(_listen(settings.port)) as listener:
            return _serve(settings, listener)
    except SegfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _serve(settings: Settings, listener: socket.socket) -> int:
    token = ensure_token(settings.home.token, HOME_PREFIX)
    ray_token = read_token(settings.home.ray_token) if settings.home.ray_token.exists() else None
    configure([token, ray_token or "", settings.mlflow_login.get(PASSWORD, "")])
    with (
        closing(Store(settings.database_url)) as store,
        # Services on other homes may use the same file; the home's own lock does not keep them apart.
        store.exclusive(),
        closing(_launcher(settings, ray_token)) as launcher,
    ):
        queue = Queue(store, steady_clock(), settings.home.storage)
        office = Office(store, queue.clock, settings.server, settings.leader_lease_s)
        leading = Leading(queue, office, launcher, settings)
        services = Services(settings, queue, Registry(settings.mlflow_uri), leading.is_alive, office)
        courier = Courier(store, office, queue.clock, services.webhooks.secret_of, Post(settings.webhook_hosts))
        door = settings.door
        app = create_app(services, token, door.names if door else ())
        # Otherwise whoever is on this machine could write any address into log and audit.
        server = _Server(uvicorn.Config(app, proxy_headers=False, **_UVICORN), services.feed.close)

        def end(*_: object) -> None:
            server.should_exit = True

        leading.on_death = end
        # uvicorn repeats the signal that ended it, once it is done, for whoever handled it before.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        with closing(services.feed), opened(app, door, **_UVICORN), promoting(services.promotions), delivering(courier):
            leading.start()
            _log.info("listening on %s:%d, process %d", HOST, settings.port, os.getpid())
            server.run(sockets=[listener])
        died = not leading.is_alive()
        leading.stop()
        _log.info("stopped; jobs on the cluster go on")
        return 1 if died else 0


def _launcher(settings: Settings, ray_token: str | None) -> Launcher | KubeLauncher:
    if settings.kube is not None:
        return KubeLauncher(settings.kube)
    return Launcher(settings.ray_address, ray_token)


class _Server(uvicorn.Server):
    """A server whose end is certain: neither a stream nor a route that hangs on another service can hold it up."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._end_streams()
        # Cutting a transaction off is what the database is made for; jobs are not touched by it.
        last_resort = threading.Timer(_EXIT_S, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()


@contextmanager
def _only_service(home: Home) -> Iterator[None]:
    """Hold the home folder's lock: two dispatchers on one embedded database would fight."""
    path: Path = home.service_lock
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(f"another service already runs on home {str(home.root)!r}; stop it first") from error
        yield


def _listen(port: int) -> socket.socket:
    """Take the port before anything else is started; loopback only: other machines come through a `Door`."""
    listener = tcp_socket(socket.AF_INET)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"port {port} of {HOST} cannot be used: {reason}; choose another with --port") from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
