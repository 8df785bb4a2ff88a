"""Settings of the service and of the command line; nothing else reads the environment."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from segfleet.data_settings import DataSettings
from segfleet.door import Door, attempts_url, webhook_hosts
from segfleet.errors import SettingsError
from segfleet.kube_settings import KubeSettings
from segfleet.mlflow_login import checked_uri, mlflow_login

_HIGHEST_PORT = 65_535
DEFAULT_PORT = 8700
# Long enough that nobody guesses it, and nothing that a header cannot carry.
_TOKEN = re.compile(r"[\x21-\x7e]{16,}")
_BARE = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Home:
    """Names of everything that lives under the home folder.

    Attributes:
        root: The folder.
        shared: Where checkpoints and logs of jobs lie instead, if several servers share them.
    """

    root: Path
    shared: Path | None = None

    @property
    def token(self) -> Path:
        """The service's bearer token, mode 0600."""
        return self.root / "token"

    @property
    def webhook_key(self) -> Path:
        """Key that the secrets of webhooks are derived from, mode 0600; servers that share a database need the same."""
        return (self.shared or self.root) / "webhook-key"

    @property
    def ray_token(self) -> Path:
        """The token of the embedded Ray, mode 0600."""
        return self.root / "ray-token"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the queue's embedded database."""
        return f"sqlite:///{self.root / 'segfleet.db'}"

    @property
    def mlflow_store(self) -> str:
        """Backend store of the embedded MLflow server."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where the embedded MLflow server keeps artifacts."""
        return self.root / "mlartifacts"

    @property
    def storage(self) -> Path:
        """Checkpoints and results, one folder a job."""
        return (self.shared or self.root) / "storage"

    @property
    def logs(self) -> Path:
        """Logs of attempts and of the service's own processes."""
        return (self.shared or self.root) / "logs"

    @property
    def tries(self) -> Path:
        """Models that pictures are tried on, pulled; the picture itself while it is predicted."""
        return self.root / "tries"

    @property
    def state(self) -> Path:
        """What `segfleet up` has started: pids, addresses."""
        return self.root / "state.json"

    @property
    def lock(self) -> Path:
        """Held by the one `segfleet up` of this home."""
        return self.root / "up.lock"

    @property
    def service_lock(self) -> Path:
        """Held by the one service of this home."""
        return self.root / "service.lock"

    def create(self) -> None:
        """Make the folders, private to the user.

        Raises:
            SettingsError: the home cannot be made or written to, or it is there and somebody else could write to it;
                or the shared folder is not there.
        """
        if self.shared is not None and not self.shared.is_dir():
            raise SettingsError(f"SEGFLEET_SHARED={str(self.shared)!r} is no folder; mount it or make it first")
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = self.root.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise SettingsError(
                    f"home {str(self.root)!r} is not yours alone (owner {status.st_uid}, "
                    f"mode {stat.S_IMODE(status.st_mode):04o}); run chmod go-w on it or choose another with --home"
                )
            for folder in (self.storage, self.logs, self.mlflow_artifacts):
                folder.mkdir(exist_ok=True, mode=0o700)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SettingsError(
                f"home {str(self.root)!r} cannot be written to: {error.strerror}; choose another with --home"
            ) from error


@dataclass(frozen=True, slots=True)
class Settings:
    """Addresses and timings of one service.

    Attributes:
        home: The home folder.
        port: The service's port on the loopback interface.
        ray_address: Base URL of Ray's Jobs API.
        mlflow_uri: Base URL of the MLflow server.
        database_url: SQLAlchemy URL of the queue's database.
        lease_s: An attempt silent for longer is lost, seconds.
        start_deadline_s: An attempt that has not claimed its job by then is lost, seconds.
        poll_s: Pause between two turns of the dispatcher, seconds.
        leader_lease_s: Of several servers on a database, one that leads and is silent for longer is replaced, seconds.
        door: Where other machines connect; None: nowhere.
        attempts_url: Base URL by which jobs reach a service; default: this one's on the loopback interface.
        webhook_hosts: Hosts and ports of webhooks that may be private.
        mlflow_login: Variables that let a process in at the MLflow server; attempts get them with their tokens.
        kube: Where jobs go instead of `ray_address`, if they are RayJobs on Kubernetes.
    """

    home: Home
    port: int
    ray_address: str
    mlflow_uri: str
    database_url: str
    lease_s: float = 45.0
    start_deadline_s: float = 300.0
    poll_s: float = 0.5
    leader_lease_s: float = 15.0
    door: Door | None = None
    attempts_url: str = ""
    webhook_hosts: frozenset[tuple[str, int]] = frozenset()
    mlflow_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    kube: KubeSettings | None = None

    def __post_init__(self) -> None:
        if not self.attempts_url:
            object.__setattr__(self, "attempts_url", f"http://127.0.0.1:{self.port}")

    @property
    def server(self) -> str:
        """Name of this server among those on its database; no two live processes of a machine have the same."""
        return f"{socket.gethostname()[:64]}:{self.port}"

    @property
    def cluster_url(self) -> str:
        """Where jobs are sent to."""
        return self.ray_address if self.kube is None else self.kube.url

    @property
    def hands_over(self) -> bool:
        """Whether quotas and room are Kueue's affair: then jobs are sent as soon as they wait for nothing else."""
        return self.kube is not None and bool(self.kube.queue)

    @property
    def job_env(self) -> dict[str, str]:
        """Switches of every job process: where MLflow is, and what must stay quiet (no secret among them)."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
            "WDS_SECURE": "1",
            "PYTHONSAFEPATH": "1",
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings of a service process, as `segfleet up` or an operator hands them over.

        Variables: SEGFLEET_HOME, SEGFLEET_PORT, SEGFLEET_RAY_ADDRESS, SEGFLEET_MLFLOW_URI, SEGFLEET_DATABASE_URL,
        SEGFLEET_LEASE_S, SEGFLEET_START_DEADLINE_S, SEGFLEET_POLL_S, those of `Door.of` and
        `KubeSettings.of`, and for several servers on one database SEGFLEET_SHARED, SEGFLEET_ATTEMPTS_URL and
        SEGFLEET_LEADER_LEASE_S;
        SEGFLEET_WEBHOOK_HOSTS (HOST:PORT, comma-separated); MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

        Raises:
            SettingsError: a number or an address is malformed, or a door or an address for jobs would be unsafe.
        """
        env = os.environ if environment is None else environment
        shared = env.get("SEGFLEET_SHARED")
        home = replace(default_home(env), shared=Path(shared).expanduser().absolute() if shared else None)
        return cls(
            home=home,
            port=_port(env),
            ray_address=env.get("SEGFLEET_RAY_ADDRESS", "http://127.0.0.1:8265"),
            mlflow_uri=checked_uri(env.get("SEGFLEET_MLFLOW_URI", "http://127.0.0.1:5000")),
            database_url=env.get("SEGFLEET_DATABASE_URL", home.database_url),
            lease_s=_number(env, "SEGFLEET_LEASE_S", 45.0, least=1.0),
            start_deadline_s=_number(env, "SEGFLEET_START_DEADLINE_S", 300.0, least=1.0),
            poll_s=_number(env, "SEGFLEET_POLL_S", 0.5, least=0.05),
            leader_lease_s=_number(env, "SEGFLEET_LEADER_LEASE_S", 15.0, least=1.0),
            door=Door.of(env),
            attempts_url=attempts_url(env),
            webhook_hosts=webhook_hosts(env),
            mlflow_login=mlflow_login(env),
            kube=KubeSettings.of(env),
        )


def default_home(environment: Mapping[str, str] | None = None) -> Home:
    """The home folder: SEGFLEET_HOME, else ~/.segfleet."""
    env = os.environ if environment is None else environment
    return Home(Path(env.get("SEGFLEET_HOME") or Path.home() / ".segfleet").expanduser().absolute())


def data_settings(environment: Mapping[str, str] | None = None) -> DataSettings:
    """Settings of a process that reads or writes datasets.

    Variables: SEGFLEET_CACHE_DIR (default: `cache` in the home folder), SEGFLEET_CACHE_LIMIT (50GiB),
    SEGFLEET_DATA_HOSTS, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, SEGFLEET_CHECKPOINTS.

    Raises:
        SettingsError: a size or an address is malformed.
    """
    env = os.environ if environment is None else environment
    return DataSettings.of(env, default_home(env).root)


def child_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Environment of a child process: this process's own with some variables set, or removed where None.

    Whatever proxy the user has, what is said on the loopback interface does not go through it; and whatever lies in
    the user's folder, a Python started there does not import it.
    """
    direct = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1,localhost")))
    merged: dict[str, str | None] = {**os.environ, "NO_PROXY": direct, "no_proxy": direct}
    merged |= {"PYTHONSAFEPATH": "1", **changes}
    return {name: value for name, value in merged.items() if value is not None}


def bare_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Environment of a child process that reads a stranger's bytes: where Python finds its modules, and no secret."""
    return {name: os.environ[name] for name in _BARE if name in os.environ} | {"PYTHONSAFEPATH": "1", **changes}


def read_token(path: Path) -> str:
    """Read a token file.

    Raises:
        SettingsError: missing, open to other users, or holding no token.
    """
    try:
        status = path.stat()
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"token file {str(path)!r} cannot be read: {error.strerror}; run 'segfleet up'") from error
    except UnicodeDecodeError:
        token = ""
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise SettingsError(f"token file {str(path)!r} is readable by others (mode {mode:04o}); run chmod 600 on it")
    if status.st_uid != os.getuid():
        raise SettingsError(f"token file {str(path)!r} belongs to another user (id {status.st_uid}); remove it")
    if not _TOKEN.fullmatch(token):
        raise SettingsError(f"token file {str(path)!r} holds no token; remove it and run 'segfleet up'")
    return token


def ensure_token(path: Path, prefix: str = "") -> str:
    """Read the token file, making it with 256 random bits and mode 0600 if it is not there.

    The file appears with its content or not at all: an empty one would be a token that everybody has.

    Args:
        path: The file.
        prefix: What a new token begins with, for those who look for lost ones.

    Raises:
        SettingsError: as `read_token`.
    """
    if not path.exists():
        staged = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{prefix}{secrets.token_urlsafe(32)}\n")
                file.flush()
                os.fsync(file.fileno())
            # Not a rename: of two processes that make the token at once, both must use the first one's.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(staged)
        finally:
            staged.unlink()
    return read_token(path)


def _port(env: Mapping[str, str]) -> int:
    port = _number(env, "SEGFLEET_PORT", DEFAULT_PORT)
    if port != int(port) or not 1 <= port <= _HIGHEST_PORT:
        raise SettingsError(
            f"SEGFLEET_PORT={env['SEGFLEET_PORT']!r} is no port; use a whole number from 1 to {_HIGHEST_PORT}"
        )
    return int(port)


def _number(env: Mapping[str, str], name: str, default: float, least: float = -math.inf) -> float:
    text = env.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(f"{name}={text!r} is not a number")
    if value < least:
        raise SettingsError(f"{name}={text!r} is too little; use at least {least:g}")
    return value
