"""Requests that schemathesis makes from the OpenAPI document, right and wrong, against a real service and MLflow.

No answer may be a fault of the server or one that the document does not tell of, and the service must be the same
process at the end. Streams are left out: their answers do not end.

Run: PYTHONPATH=tests python tests/fuzz_api.py [--requests 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from processes import free_port, mlflow_server, running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
STREAMS = "(/stream|/events)$"


def main() -> int:
    """Print what schemathesis found; 1 if that is anything, or if there were fewer requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        home = folder / "home"
        with mlflow_server(folder) as mlflow, running(home, port, SEGFLEET_MLFLOW_URI=mlflow) as service:
            token = (home / "token").read_text().strip()
            document = f"http://127.0.0.1:{port}/api/v1/openapi.json"
            status, made, wanted = 0, 0, options.requests
            # Some operations have but few requests that differ, so one run brings fewer than it was asked for.
            for number in range(10):
                code, requests = _run(document, token, wanted, options.seed + number, folder)
                status, made = status or code, made + requests
                wanted = options.requests - made
                if status or wanted <= 0:
                    break
            is_same = service.poll() is None
    print(f"{made} requests, seed {options.seed}; the service {'lives' if is_same else 'has ended'}")
    return status or int(made < options.requests or not is_same)


def _run(document: str, token: str, requests: int, seed: int, folder: Path) -> tuple[int, int]:
    """The exit code, and how many requests were made."""
    bearer = {"Authorization": f"Bearer {token}"}
    paths = httpx.get(document, headers=bearer, timeout=30.0).json()["paths"]
    count = sum(len(methods) for path, methods in paths.items() if not re.search(STREAMS, path))
    # By the environment, so that the list of processes does not show the token.
    (folder / "schemathesis.toml").write_text('[headers]\nAuthorization = "Bearer ${TOKEN}"\n')
    command = [sys.executable, "-m", "schemathesis.cli", "run", document, f"--exclude-path-regex={STREAMS}"]
    command += [f"--checks={CHECKS}", f"--max-examples={requests // count + 1}", "--phases=fuzzing", f"--seed={seed}"]
    command += ["--request-timeout=30", "--continue-on-failure", "--suppress-health-check=all", "--warnings=off"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "TOKEN": token}, stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout, flush=True)
    made = re.search(r"(\d+) generated", done.stdout)
    return done.returncode, int(made[1]) if made else 0


if __name__ == "__main__":
    sys.exit(main())
