"""An S3 server on the loopback interface, for tests: moto's, with a bucket in it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

from segfleet_pipelines.reader import SampleIndex

BUCKET = "segfleet-tests"
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment of a process that may use the running server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1"}
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield environment
    finally:
        server.stop()


def digest_dataset(address: str) -> str:
    """SHA-256 of all samples, in order; here because the processes of a pool import it by name."""
    index, digest = SampleIndex.load(address, "train"), hashlib.sha256()
    for i in range(len(index)):
        for part in index.read_sample(i)[1:]:
            digest.update(part)
    return digest.hexdigest()
