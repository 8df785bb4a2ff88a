"""`python -m segfleet_jobs.import_model`: a checkpoint of other code becomes a registered model.

All that can be wrong with the file is found before anything is written. Then the model is logged to MLflow, in a run
that is found again by the model's content, and the service makes the version: whatever breaks off, nothing is
registered, and the next try goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from pydantic import ValidationError
from safetensors.torch import save_file

from segfleet.client import Client
from segfleet.errors import ModelError, SegfleetError, ServiceError, SettingsError
from segfleet.registry.registration import CONTENT_TAG
from segfleet.registry.sent_once import sent_once
from segfleet.spec.filling import leaves
from segfleet.spec.sections import RegisterSpec
from segfleet_jobs.imported_model import (
    FORMATS,
    Classes,
    classes_of,
    content_digest,
    read_checkpoint,
    served_config,
    taken_over,
    with_windows,
)
from segfleet_jobs.logged_model import log_segmenter
from segfleet_jobs.origin import UNKNOWN, size_tags
from segfleet_jobs.patience import Patience, patiently
from segfleet_jobs.tracking import fail_run, find_experiment
from segfleet_jobs.version import code_version
from segfleet_models.convert import Imported

EXPERIMENT = "segfleet/imports"
_MODEL_TAG = "segfleet.model_uri"
_PATIENCE_S = 60.0
# How many class names a person is shown.
_SHOWN_NAMES = 6


def register_import(
    client: Client, imported: Imported, classes: Classes, name: str, alias: str | None, tags: Mapping[str, str]
) -> dict[str, Any]:
    """Log the model and have the service make its version; the same content is logged and registered once.

    Args:
        client: To the service.
        imported: The checkpoint.
        classes: Its classes.
        name: Registered model.
        alias: Moved to the version; None moves none.
        tags: Of the run and of the version.

    Returns:
        {"name", "version", "alias", "run_id"}.

    Raises:
        ServiceError: service or MLflow do not answer.
        ModelRefusedError: the registry does not take it.
    """
    _use_mlflow_of(client)
    config = served_config(imported, classes)
    with tempfile.TemporaryDirectory(prefix="segfleet-import-") as folder:
        weights = Path(folder) / "model.safetensors"
        save_file(imported.state, weights)
        digest = content_digest(weights, config)
        run_id, model_uri = _log_once(digest, weights, config, tags)
        licences = {f"segfleet.licence.{what}": UNKNOWN for what in ("data", "weights")}
        told = {**tags, **licences, **size_tags(weights), "segfleet.code_version": code_version()}
    _say("registering")
    made = client.register_model(
        name, run_id=run_id, model_uri=model_uri, content_digest=digest, alias=alias, tags=told
    )
    return {**made, "run_id": run_id}


def _use_mlflow_of(client: Client) -> None:
    server = client.status()["mlflow"]
    if not server["ok"]:
        raise ServiceError(f"the service's MLflow at {server['url']} does not answer; 'segfleet status' shows more")
    mlflow.set_tracking_uri(server["url"])


def _log_once(digest: str, weights: Path, config: Mapping[str, Any], tags: Mapping[str, str]) -> tuple[str, str]:
    """(run id, model URI) of the content: found, or logged now."""
    client = mlflow.MlflowClient()
    run = patiently(lambda: _run_of(client, digest, tags), _PATIENCE_S)
    run_id, known = str(run.info.run_id), run.data.tags.get(_MODEL_TAG)
    if known is not None and patiently(lambda: _is_there(client, known), _PATIENCE_S):
        return run_id, known
    _say(f"logging {weights.stat().st_size / 2**20:.0f} MiB to MLflow")
    params = [Param(key, str(value)) for key, value in leaves({"model": config["model"]}).items()]
    try:
        patiently(lambda: client.log_batch(run_id, params=params), _PATIENCE_S)
        model_uri = log_segmenter(run_id, weights, config, Patience(_PATIENCE_S))
        patiently(lambda: client.log_batch(run_id, tags=[RunTag(_MODEL_TAG, model_uri)]), _PATIENCE_S)
        patiently(lambda: client.set_terminated(run_id, status="FINISHED"), _PATIENCE_S)
    except Exception as error:
        fail_run(run_id, str(error))
        raise
    return run_id, model_uri


def _run_of(client: mlflow.MlflowClient, digest: str, tags: Mapping[str, str]) -> Any:
    experiment_id = find_experiment(client, EXPERIMENT)
    runs = client.search_runs([experiment_id], f"tags.`{CONTENT_TAG}` = '{digest}'", max_results=1)
    if runs:
        return runs[0]
    own = {CONTENT_TAG: digest, "segfleet.code_version": code_version()}
    with sent_once():
        return client.create_run(experiment_id, tags={**tags, **own}, run_name=f"import {digest[:8]}")


def _is_there(client: mlflow.MlflowClient, model_uri: str) -> bool:
    try:
        client.get_logged_model(model_uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def describe(facts: Mapping[str, Any]) -> str:
    """What was taken over (`taken_over`), for a person."""
    names = ", ".join(facts["class_names"][:_SHOWN_NAMES]) + (", ..." if facts["classes"] > _SHOWN_NAMES else "")
    mean, std = ("/".join(f"{255 * value:g}" for value in facts[name]) for name in ("mean", "std"))
    window = facts["window"]
    short_side = f"short side {window['short_side']}, " if window["short_side"] else ""
    lines = [
        f"model       {facts['backbone']}, patch {facts['patch_size']}, {facts['decoder']} decoder",
        f"classes     {facts['classes']} from {facts['classes_from']}: {names}",
        f"pixels      mean {mean}, deviation {std} of 0..255",
        f"encoder     LayerNorm epsilon {facts['layer_norm_eps']:g}; positions for {facts['stored_size']} pixels, "
        f"resized {facts['position_mode']}",
        f"evaluation  {short_side}window {window['window']}, stride {window['stride']}, as {window['protocol']}",
        f"tensors     {facts['tensors']} taken over; left out: {', '.join(facts['left_out']) or 'none'}",
    ]
    if facts["assumed"]:
        lines.append(f"assumed     {'; '.join(facts['assumed'])} (the file does not say)")
    return "\n".join(lines)


def _checked_target(name: str, alias: str | None) -> None:
    """Refuse a wrong name before anything is written."""
    try:
        RegisterSpec(model=name, **({} if alias is None else {"alias": alias}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--alias" if first["loc"] == ("alias",) else "--name"
        raise SettingsError(f"{flag} {first['input']!r}: {first['msg']}") from error


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels above 0")
    return int(text)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="segfleet models import", description="Register a checkpoint of other code.")
    parser.add_argument("path", type=Path, help="the checkpoint")
    parser.add_argument("--format", required=True, choices=FORMATS, help="the code it comes from")
    parser.add_argument("--name", required=True, help="registered model")
    parser.add_argument("--alias", help="moved to the version")
    parser.add_argument("--classes", help="a file with names in label order, or a known dataset")
    for flag in ("--window", "--stride", "--short-side"):
        parser.add_argument(flag, type=_positive, help="pixels, instead of the checkpoint's own")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, 2 for wrong settings or a refused model, or 1; the reason is on stderr."""
    options = _options(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        _checked_target(options.name, options.alias)
        _say(f"reading {options.path}")
        imported = read_checkpoint(options.format, options.path)
        imported = with_windows(imported, options.window, options.stride, options.short_side)
        classes = classes_of(imported, options.classes)
        tags = {"segfleet.format": options.format, "segfleet.file": options.path.name}
        with Client() as client:
            made = register_import(client, imported, classes, options.name, options.alias, tags)
    except SegfleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ModelError | SettingsError) else 1
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on where this one ended", file=sys.stderr)
        return 1
    facts = taken_over(imported, classes)
    if options.json:
        print(json.dumps({**made, "taken_over": facts}))
    else:
        target = f"{made['name']}@{made['alias']}" if made["alias"] else f"{made['name']}/{made['version']}"
        print(describe(facts))
        print(f"registered as {made['name']}/{made['version']}; segfleet predict --model {target} IMAGE --out DIR")
        if options.alias and not made["alias"]:
            print(
                f"@{options.alias} has a gate: promotion {made['promotion']}; see segfleet models show {made['name']}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
