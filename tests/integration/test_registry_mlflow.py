"""The registry against a real MLflow server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from factories import close_stores, make_queue
from processes import mlflow_server
from segfleet.errors import ModelError, ModelRefusedError, ServiceError
from segfleet.promotion.desk import Promotions
from segfleet.registry.registration import Registration, of_content, of_job
from segfleet.registry.registry import Registry
from segfleet.registry.version_maker import VersionMaker

pytestmark = pytest.mark.integration

MODEL_CODE = """
import mlflow

class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[int]):
        return model_input

mlflow.models.set_model(Echo())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="module")
def logged(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(run id, model URI) of a model that a job has logged."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "echo.py").write_text(MODEL_CODE)
    (folder / "weights.bin").write_bytes(b"\0\1" * 4000)
    mlflow.set_tracking_uri(server)
    try:
        with mlflow.start_run() as run:
            info = mlflow.pyfunc.log_model(
                name="segmenter",
                python_model=str(folder / "echo.py"),
                artifacts={"weights": str(folder / "weights.bin")},
                pip_requirements=[],
            )
        return run.info.run_id, info.model_uri
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture
def wanted(logged: tuple[str, str], request: pytest.FixtureRequest) -> Registration:
    """A registration under a name of the test's own."""
    name = request.node.name.replace("_", "-")[:60]
    run_id, model_uri = logged
    return Registration(
        name=name,
        run_id=run_id,
        model_uri=model_uri,
        identity=of_job("job-aaaaaaaa", 0),
        metrics={"miou": 0.25, "pixel_accuracy": None},
        tags={"segfleet.content_id": "c" * 64, "segfleet.job": "job-forged22"},
    )


@pytest.fixture
def registry(server: str) -> Registry:
    return Registry(server)


def test_a_job_has_one_version_however_often_it_asks(registry: Registry, wanted: Registration) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: registry.register(wanted), range(4)))
    assert made == ["1"] * 4
    # Another process, as after a restart of the service, knows of it too.
    assert Registry(registry.uri).register(wanted) == "1"
    other = registry.register(replace(wanted, identity=of_job("job-bbbbbbbb", 0)))
    assert other == "2"
    assert [version["version"] for version in registry.model(wanted.name)["versions"]] == ["2", "1"]
    retried = replace(wanted, identity=of_job("job-aaaaaaaa", 3))
    assert [registry.register(retried) for _ in range(2)] == ["3", "3"]
    assert registry.register(wanted) == "1"


def test_a_version_tells_where_it_comes_from(registry: Registry, wanted: Registration) -> None:
    registry.register(wanted)
    registry.set_alias(wanted.name, "candidate", "1")
    by_alias = registry.version(wanted.name, "@candidate")
    assert by_alias == registry.version(wanted.name, "1")
    assert by_alias["job"] == "job-aaaaaaaa"
    assert by_alias["run_id"] == wanted.run_id
    assert by_alias["metrics"] == {"miou": 0.25}
    assert by_alias["tags"] == {"segfleet.content_id": "c" * 64}
    assert by_alias["aliases"] == ["candidate"]
    listed = {model["name"]: model for model in registry.models()}[wanted.name]
    assert (listed["aliases"], listed["latest_version"]) == ({"candidate": "1"}, "1")
    assert registry.model(wanted.name)["versions"][0] == by_alias


def test_an_alias_has_one_holder_and_moves_when_told(registry: Registry, wanted: Registration) -> None:
    registry.register(wanted)
    registry.register(replace(wanted, identity=of_job("job-bbbbbbbb", 0)))
    assert registry.holder(wanted.name, "champion") is None
    for version in ("1", "2"):
        registry.set_alias(wanted.name, "champion", version)
        assert registry.holder(wanted.name, "champion") == version
    assert registry.version(wanted.name, "1")["aliases"] == []
    assert registry.version(wanted.name, "@champion")["version"] == "2"
    for name, version in ((wanted.name, "77"), ("nothing-here", "1")):
        with pytest.raises(ModelError):
            registry.set_alias(name, "champion", version)
    with pytest.raises(ModelError):
        registry.holder("nothing-here", "champion")


def test_a_move_that_was_cut_off_is_finished_once_after_the_next_start(
    registry: Registry, wanted: Registration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        registry.register(replace(wanted, identity=of_job("job-aaaaaaaa", number)))
    queue = make_queue(tmp_path)
    who = {"who": "ann", "project": "default"}
    assert Promotions(queue, registry).ask(wanted.name, "champion", "1", **who).state == "promoted"
    moves: list[str] = []
    move = registry.set_alias

    def dying(name: str, alias: str, version: str) -> None:
        moves.append(version)
        move(name, alias, version)
        raise KeyboardInterrupt

    for version in ("2", "3"):
        monkeypatch.setattr(registry, "set_alias", dying)
        with pytest.raises(KeyboardInterrupt):
            Promotions(queue, registry).ask(wanted.name, "champion", version, **who)
        monkeypatch.setattr(registry, "set_alias", lambda *_: pytest.fail("moved twice"))
        again = Promotions(queue, registry)
        assert [str(one.state) for one in again.list(wanted.name, 1)] == ["moving"]
        again.advance_all()
        assert [str(one.state) for one in again.list(wanted.name, 1)] == ["promoted"]
        assert registry.holder(wanted.name, "champion") == version
    assert moves == ["2", "3"]
    close_stores()


def test_a_deleted_version_is_gone_and_its_run_stays(registry: Registry, wanted: Registration) -> None:
    registry.register(wanted)
    registry.delete_version(wanted.name, "1")
    with pytest.raises(ModelError):
        registry.version(wanted.name, "1")
    assert registry._client.get_run(wanted.run_id).info.run_id == wanted.run_id
    # The same model can be registered again, under a number of its own.
    assert registry.register(wanted) == "2"


def test_an_import_has_one_version_for_each_content(registry: Registry, wanted: Registration) -> None:
    contents = [of_content(letter * 64) for letter in "aab"]
    imports = [replace(wanted, identity=content) for content in contents]
    assert [registry.register(one) for one in imports] == ["1", "1", "2"]
    assert registry.version(wanted.name, "1")["aliases"] == []
    assert registry.version(wanted.name, "1")["tags"]["segfleet.content_digest"] == "a" * 64
    # The tags that were sent along name a job; that job's own version is another one all the same.
    assert registry.register(wanted) == "3"
    assert registry.version(wanted.name, "1")["job"] is None


def test_figures_are_added_to_a_version_and_replaced(registry: Registry, wanted: Registration) -> None:
    registry.register(wanted)
    before = registry.version(wanted.name, "1")
    name = "eval/boxes-val-0123456789ab/reference-ms6-flip-01234567/miou"
    registry.add_metrics(wanted.name, "1", {name: 0.25, "eval/x/none": None})
    registry.add_metrics(wanted.name, "1", {name: 0.5})
    after = registry.version(wanted.name, "1")
    assert after == before | {"metrics": before["metrics"] | {name: 0.5}}
    with pytest.raises(ModelError):
        registry.add_metrics(wanted.name, "77", {name: 0.5})


def test_the_files_come_back_and_load(registry: Registry, wanted: Registration, tmp_path: Path) -> None:
    registry.register(wanted)
    registry.set_alias(wanted.name, "candidate", "1")
    for ref in ("1", "@candidate"):
        folder = tmp_path / ref
        folder.mkdir()
        found = registry.fetch(wanted.name, ref, folder)
        assert found.is_relative_to(folder)
        assert (found / "artifacts" / "weights.bin").read_bytes() == b"\0\1" * 4000
        assert mlflow.pyfunc.load_model(str(found)).predict([1, 2]) == [1, 2]


def test_what_is_not_there_is_said(registry: Registry, wanted: Registration, tmp_path: Path) -> None:
    registry.register(wanted)
    asks = [
        lambda: registry.model("nothing-here"),
        lambda: registry.model("x' or name like '%"),
        lambda: registry.version("nothing-here", "1"),
        lambda: registry.version(wanted.name, "77"),
        lambda: registry.version(wanted.name, "@nobody"),
        lambda: registry.version(wanted.name, "../1"),
        lambda: registry.fetch(wanted.name, "@nobody", tmp_path),
    ]
    for ask in asks:
        with pytest.raises(ModelError, match="segfleet models list"):
            ask()


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "0" * 32},
        {"model_uri": "/etc"},
        {"model_uri": "http://attacker.invalid/x"},
        {"model_uri": "models:/other@alias"},
        {"tags": {"mlflow.source.name": "x"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_foreign_model_is_refused(registry: Registry, wanted: Registration, change: dict[str, str]) -> None:
    foreign = replace(wanted, name="refused", **change)
    with pytest.raises(ModelRefusedError):
        registry.register(foreign)
    assert "refused" not in {model["name"] for model in registry.models()}


def test_an_unknown_model_is_refused(registry: Registry, wanted: Registration) -> None:
    with pytest.raises(ModelError):
        registry.register(replace(wanted, name="refused", model_uri="models:/m-" + "0" * 32))


def test_a_version_whose_answer_was_lost_is_found_again(registry: Registry, wanted: Registration) -> None:
    class Losing(MlflowClient):  # type: ignore[misc]
        def create_model_version(self, *args: object, **kwargs: object) -> None:
            super().create_model_version(*args, **kwargs)
            raise mlflow.exceptions.MlflowException("connection lost")

    losing = Registry(registry.uri)
    losing._maker = VersionMaker(Losing(tracking_uri=registry.uri, registry_uri=registry.uri))
    with pytest.raises(ServiceError):
        losing.register(wanted)
    assert registry.register(wanted) == "1"
    assert len(registry.model(wanted.name)["versions"]) == 1


def test_a_server_that_is_away_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Registry("http://127.0.0.1:1")
    assert not away.is_up()
    for ask in (away.models, lambda: away.model("seg"), lambda: away.version("seg", "@best")):
        with pytest.raises(ServiceError, match="does not answer"):
            ask()


def test_it_is_up(registry: Registry) -> None:
    assert registry.is_up()
