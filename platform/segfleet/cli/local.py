"""Verbs of the stack on this machine: up, down, status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from segfleet.address import service_address
from segfleet.cli.children import options, require
from segfleet.cli.output import note, print_json, say
from segfleet.client import Client
from segfleet.door import Door
from segfleet.errors import SegfleetError, SettingsError
from segfleet.settings import DEFAULT_PORT, Home, child_environment, default_home

_NEEDED = ("psutil", "ray", "flask", "mlflow")
_POLL_S = 0.25

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Home folder (default: $SEGFLEET_HOME or ~/.segfleet).")
]
Port = Annotated[int, typer.Option(min=1, max=65_535, help="Port of the service on 127.0.0.1.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    for verb in (up, down, status):
        app.command()(verb)


def up(
    home: HomeOption = None,
    port: Port = DEFAULT_PORT,
    detach: Annotated[bool, typer.Option("--detach", help="Return once everything answers.")] = False,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="Serve other machines there too; needs TLS or a proxy.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain for --listen, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    behind_proxy: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The proxy that encrypts in front of --listen.")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="Name by which others reach --listen; repeatable.")
    ] = None,
) -> None:
    """Start Ray, MLflow and the service on this machine.

    They are kept running until Ctrl-C or 'segfleet down'.

    Everything listens on 127.0.0.1 only, unless --listen opens a second address of the
    service. Whatever dies is started again; jobs go on from their last checkpoint.

    Example: segfleet up

    Example: segfleet up --home /data/segfleet --port 8800 --detach

    Example: segfleet up --listen 0.0.0.0:8443 --tls-cert c.pem --tls-key k.pem --host-name fleet.example.org
    """
    require("up", _NEEDED, "server")
    _open_door(
        {
            "SEGFLEET_LISTEN": listen,
            "SEGFLEET_TLS_CERT": None if tls_cert is None else str(tls_cert.absolute()),
            "SEGFLEET_TLS_KEY": None if tls_key is None else str(tls_key.absolute()),
            "SEGFLEET_PROXY": behind_proxy,
            "SEGFLEET_HOST_NAMES": ",".join(host_name or ()),
        }
    )
    where = _home(home)
    if detach:
        _up_detached(where, port)
    else:
        _up_here(where, port)


def down(home: HomeOption = None) -> None:
    """Stop what 'segfleet up' started on this home.

    Queued and running jobs wait for the next 'up'.

    Example: segfleet down
    """
    require("down", _NEEDED[:1], "server")
    from segfleet.cluster.local import down as end

    where = _home(home)
    say("stopped" if end(where, say) else f"nothing is running on home {where.root}")


def status(home: HomeOption = None, as_json: Json = False) -> None:
    """Show whether Ray, MLflow and the service answer.

    With their memory, and the queue in numbers; exit code 1 if not all answer.

    Example: segfleet status
    """
    where = _home(home)
    parts, service = _parts(where), _service_status(where)
    if as_json:
        print_json({"parts": parts, "service": service})
    else:
        _print_status(parts, service)
    raise typer.Exit(0 if service is not None and all(part["answers"] for part in parts) else 1)


def _home(given: Path | None) -> Home:
    return default_home() if given is None else default_home({"SEGFLEET_HOME": str(given)})


def _open_door(given: dict[str, str | None]) -> None:
    """Hand the door to the service's process, which inherits the environment, and refuse an unsafe one at once."""
    os.environ.update({name: text for name, text in given.items() if text})
    if Door.of(os.environ) is None and any(given.values()):
        raise SettingsError("--tls-cert, --tls-key, --behind-proxy and --host-name belong to --listen ADDRESS:PORT")


def _up_here(home: Home, port: int) -> None:
    from segfleet.cluster.local import up as run
    from segfleet.cluster.state import State

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())

    def ready(state: State) -> None:
        say(f"ready: {state.url} (token in {home.token}); 'segfleet down' or Ctrl-C here stops everything")
        if home != default_home():
            say(f"for the other commands: export SEGFLEET_HOME={home.root}")

    say(f"starting on home {home.root}")
    run(home, port, stop, say, ready)
    say("stopped")


def _up_detached(home: Home, port: int) -> None:
    from segfleet.cluster.state import State, exclusive

    home.create()
    log = home.logs / "up.log"
    # Refuses while another 'up' lives, which goes on writing to this log.
    with exclusive(home):
        log.touch()
        begin = log.stat().st_size
    with log.open("ab") as out:
        command = [sys.executable, "-P", "-m", "segfleet.cli.main", "up", *options(home=home.root, port=port)]
        child = subprocess.Popen(
            command,
            env=child_environment({"PYTHONUNBUFFERED": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(begin)
        while child.poll() is None:
            sys.stdout.write(lines.read())
            sys.stdout.flush()
            state = State.load(home)
            if state is not None and state.ready and state.up_pid == child.pid:
                sys.stdout.write(lines.read())
                say(f"running in the background (pid {child.pid}, log {log})")
                return
            time.sleep(_POLL_S)
        sys.stderr.write(lines.read())
    raise typer.Exit(child.returncode if child.returncode > 0 else 1)


def _parts(home: Home) -> list[dict[str, Any]]:
    try:
        require("status", _NEEDED[:1], "server")
    except SettingsError:
        # A client's machine: there is nothing here but the service elsewhere.
        return []
    from segfleet.cluster.local import status as look

    return [asdict(part) for part in look(home)]


def _service_status(home: Home) -> dict[str, Any] | None:
    try:
        with Client(*service_address(home), patience_s=0.0) as client:
            return client.status()
    except SegfleetError as error:
        note(str(error))
        return None


def _print_status(parts: list[dict[str, Any]], service: dict[str, Any] | None) -> None:
    for part in parts:
        state = "answers" if part["answers"] else "does not answer" if part["pid"] else "is not running"
        say(f"{part['name']:8} {part['address']:24} {state}, pid {part['pid'] or '-'}, {part['memory_mib']:.0f} MiB")
    if service is not None:
        counts = ", ".join(f"{count} {state}" for state, count in service["jobs"].items() if count) or "none"
        say(f"jobs: {counts}")
        database, storage = service["database"], service["storage"]
        say(f"database: {database['kind']}, answers in {1000 * database['answered_in_s']:.0f} ms")
        if storage["free_bytes"] is None:
            say(f"storage: {storage['path']} cannot be reached")
        else:
            low = "" if storage["ok"] else ", which is little"
            say(f"storage: {storage['free_bytes'] / 1e9:.0f} of {storage['total_bytes'] / 1e9:.0f} GB free{low}")
        server, leader = service["server"], service["leader"]
        if server["role"] == "leader":
            say(f"leader: this server, {server['name']}, epoch {leader['epoch']}")
        else:
            say(f"leader: {leader['name'] or 'none yet'}, epoch {leader['epoch']}; asked: {server['name']}, a follower")
