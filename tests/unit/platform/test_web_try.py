"""Trying a model on a picture: what is taken, how many at a time, who sees the result and for how long."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segfleet.access.roles import Role
from segfleet.errors import AccessError, DataError, ModelError
from segfleet.server import guard
from segfleet.tryout import child, desk
from segfleet.tryout.child import Prediction
from segfleet.tryout.desk import Tries
from segfleet.tryout.shelf import Shelf
from segfleet.web.uploads import split_upload
from serving import FROM_PAGE, FakeRegistry, Service, page_key, sign_in

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
JPEG = b"\xff\xd8\xff" + b"pixels"
EVIL = "<script>alert(1)</script>\u202e"
RESULT = Prediction(b"overlay", {"road": 0.75, EVIL: 0.25}, {"road": "#102030", EVIL: '"><script>'})
HTML = {"Accept": "text/html"}


def predicted(folder: Path, picture: bytes, work: Path) -> Prediction:
    """What the child process would say; the model is there, and the folder to work in is empty."""
    assert (folder / "MLmodel").is_file()
    assert not list(work.iterdir())
    (work / "picture").write_bytes(picture)
    return RESULT


def tries_of(service: Service) -> Tries:
    app: Any = service.http.app
    found: Tries = app.state.services.tries
    return found


def ended() -> None:
    """Wait until no picture is under way."""
    for thread in threading.enumerate():
        if thread.name == "try":
            thread.join(10)


def send(service: Service, picture: bytes = PNG, version: str = "1", headers: dict[str, str] = FROM_PAGE) -> Any:
    data = {"key": page_key(service), "version": version}
    files = {"picture": ("street.png", picture, "image/png")}
    return service.http.post(
        "/models/seg/tries", data=data, files=files, headers=headers | HTML, follow_redirects=False
    )


def token_of(service: Service, user: str, role: Role) -> str:
    body = {"user": user, "role": role}
    return str(service.http.post("/api/v1/tokens", json=body, headers=service.bearer).json()["token"])


@pytest.fixture
def able(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    tries_of(service).predict = predicted
    monkeypatch.setattr(child, "why_not", lambda: "")
    sign_in(service)
    return service


def test_a_picture_is_tried_and_nothing_of_it_stays(able: Service) -> None:
    assert 'href="/models/seg/tries?version=1"' in able.http.get("/models/seg", headers=HTML).text
    form = able.http.get("/models/seg/tries?version=1", headers=HTML).text
    assert 'enctype="multipart/form-data"' in form
    assert "20 MiB and 16 megapixels" in form
    answer = send(able)
    assert answer.status_code == 303, answer.text
    place = answer.headers["location"]
    ended()
    text = able.http.get(place, headers=HTML).text
    assert "road" in text
    assert "75.0 %" in text
    assert 'fill="#102030"' in text
    assert "<script>" not in text.replace('<script type="module"', "")
    assert "\u202e" not in text
    assert "data-over" in able.http.get(f"{place}/live").text
    overlay = able.http.get(f"{place}/overlay")
    assert (overlay.content, overlay.headers["content-type"]) == (b"overlay", "image/png")
    assert overlay.headers["cache-control"] == "no-store"
    (model,) = (able.home.root / "tries").iterdir()
    assert model.name.startswith("seg-1-")
    assert not [path for path in able.home.root.rglob("*") if path.is_file() and b"pixels" in path.read_bytes()]


def test_one_picture_at_a_time_and_its_page_tells_how_far_it_is(able: Service) -> None:
    go_on = threading.Event()

    def slow(folder: Path, picture: bytes, work: Path) -> Prediction:
        go_on.wait(10)
        return RESULT

    tries_of(able).predict = slow
    place = send(able).headers["location"]
    try:
        text = able.http.get(place, headers=HTML).text
        assert '<noscript><meta http-equiv="refresh"' in text
        assert "Predicting, for" in text or "Fetching the model, for" in text
        assert "data-over" not in able.http.get(f"{place}/live").text
        assert able.http.get(f"{place}/overlay").status_code == 404
        busy = send(able)
        assert busy.status_code == 429
        assert "one at a time" in busy.text
        assert 'aria-invalid="true"' in busy.text
    finally:
        go_on.set()
        ended()
    assert send(able).status_code == 303
    ended()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (b"", "no picture"),
        (b"GIF89a", "neither a jpeg"),
        (b"<svg onload=alert(1)>", "neither a jpeg"),
    ],
)
def test_only_jpeg_and_png_are_taken(able: Service, picture: bytes, words: str) -> None:
    answer = send(able, picture)
    assert answer.status_code == 422
    assert words in answer.text.lower()
    assert "picture-trouble" in answer.text


def test_a_picture_that_is_too_large_is_refused_on_its_way(able: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_UPLOAD_BYTES", 3000)
    assert send(able, PNG + b"p" * 4000).status_code == 413
    assert send(able, PNG + b"p" * 1000).status_code == 303
    ended()
    monkeypatch.setattr(child, "MAX_PICTURE_BYTES", 100)
    assert send(able, PNG + b"p" * 1000).status_code == 422


def test_other_routes_take_no_uploads_and_this_one_nothing_else(able: Service) -> None:
    files = {"picture": ("street.png", PNG, "image/png")}
    key = {"key": page_key(able)}
    assert able.http.post("/models/seg/promotions", data=key, files=files, headers=FROM_PAGE).status_code == 415
    assert able.http.post("/api/v1/models/seg/tries", files=files, headers=able.bearer).status_code == 415
    assert able.http.post("/models/seg/tries", data=key, headers=FROM_PAGE).status_code == 415


def test_an_upload_of_another_sites_page_is_refused(able: Service) -> None:
    assert send(able, headers={"Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "cross-site"}).status_code == 403
    files = {"picture": ("street.png", PNG, "image/png")}
    for key in ({}, {"key": "0" * 64}):
        data = {"version": "1", **key}
        assert able.http.post("/models/seg/tries", data=data, files=files, headers=FROM_PAGE).status_code == 403


def test_a_result_is_for_who_asked_and_for_ten_minutes(able: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob, vera = (
        token_of(able, name, role) for name, role in (("ann", Role.USER), ("bob", Role.ADMIN), ("vera", Role.VIEWER))
    )
    sign_in(able, ann)
    place = send(able).headers["location"]
    ended()
    assert able.http.get(place).status_code == 200
    sign_in(able, bob)
    assert able.http.get(place).status_code == able.http.get(f"{place}/overlay").status_code == 404
    sign_in(able, vera)
    assert able.http.get(place).status_code == send(able).status_code == 403
    assert "Try it" not in able.http.get("/models/seg", headers=HTML).text
    sign_in(able, ann)
    monkeypatch.setattr(desk, "KEPT_S", 0.0)
    assert able.http.get(f"{place}/overlay").status_code == 404


def test_what_goes_wrong_is_told_on_its_page(able: Service) -> None:
    def refuses(folder: Path, picture: bytes, work: Path) -> Prediction:
        raise DataError(f"the picture is damaged {EVIL}")

    def fails(folder: Path, picture: bytes, work: Path) -> Prediction:
        raise RuntimeError("secret")

    for predict, words in ((refuses, "The picture is damaged"), (fails, "The service failed on this picture")):
        tries_of(able).predict = predict
        place = send(able).headers["location"]
        ended()
        text = able.http.get(place, headers=HTML).text
        assert words in text
        assert "secret" not in text
        assert "<script>alert" not in text
    assert send(able, version="9").status_code == 404
    assert send(able, version="x").status_code == 404


def test_a_server_without_torch_says_so(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(service)
    monkeypatch.setattr(child, "why_not", lambda: "it needs torch")
    text = service.http.get("/models/seg/tries", headers=HTML).text
    assert "This server cannot predict: it needs torch" in text
    assert 'type="file"' not in text


def test_results_are_kept_within_a_bound(tmp_path: Path) -> None:
    tries = Tries(tmp_path / "tries", FakeRegistry(), lambda: 0.0, lambda *_: Prediction(b"x" * (9 << 20), {}, {}))
    ids = []
    for _ in range(10):
        ids.append(tries.begin("seg", "1", JPEG, "ann"))
        ended()
    kept = [try_id for try_id in ids if _is_there(tries, try_id)]
    assert len(kept) == 7  # of 9 MiB each in 64
    with pytest.raises(ModelError, match="try the picture again"):
        tries.get("nothing", "ann")


def _is_there(tries: Tries, try_id: str) -> bool:
    try:
        return tries.get(try_id, "ann").prediction is not None
    except ModelError:
        return False


def test_models_are_pulled_once_and_the_last_used_stay(tmp_path: Path) -> None:
    registry = FakeRegistry()
    fetched: list[str] = []

    def fetch(name: str, ref: str, folder: Path) -> Path:
        fetched.append(ref)
        return FakeRegistry.fetch(registry, name, ref, folder)

    registry.fetch = fetch  # type: ignore[method-assign]
    shelf = Shelf(tmp_path / "tries", registry, most_bytes=14_000)
    left = tmp_path / "tries" / ".work-old"
    left.mkdir(parents=True)
    (left / "picture.jpg").write_bytes(JPEG)
    with shelf.workplace():
        assert not left.exists(), "what a killed service has left"
        registry.versions |= {"3"}
        models = {number: shelf.model(registry.version("seg", number)) for number in "12"}
        for age, number in enumerate("12"):
            os.utime(models[number], (1000.0 + age, 1000.0 + age))
        assert shelf.model(registry.version("seg", "1")) == models["1"]
        shelf.model(registry.version("seg", "3"))
    assert fetched == ["1", "2", "3"]
    assert models["1"].is_dir()
    assert not models["2"].exists(), "the one unused for longest"
    assert not list((tmp_path / "tries").glob(".*"))


STAND_IN = """
import json, os, sys, time
from pathlib import Path
options = sys.argv
if os.environ.get("AWS_SECRET_ACCESS_KEY") or os.environ["CUDA_VISIBLE_DEVICES"]: sys.exit(3)
out = Path(options[options.index("--out") + 1])
kind = Path(options[options.index("--model") + 1]).name
if kind == "slow": time.sleep(60)
if kind == "broken": sys.exit(f"error: the model in {str(out.parent)!r} cannot be loaded")
if kind == "dead": os.abort()
failed = [{"image": "x", "reason": "9x9 pixels are more; raise --max-megapixels"}] if kind == "large" else []
out.mkdir()
(out / "picture-overlay.png").write_bytes(Path(options[-1]).read_bytes())
print(json.dumps({"predictions": [{"shares": {"road": 1.0}}], "failed": failed, "colors": {"road": "#000000"}}))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prediction]:
    """`child.predict` with another module in the place of the command's."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(child, "MODULE", "stand_in")
    return lambda kind, **options: child.predict(tmp_path / kind, JPEG, tmp_path / "work", **options)


def test_the_child_gets_no_secret_and_its_result_is_read(stand_in: Callable[..., Prediction]) -> None:
    assert stand_in("good") == Prediction(JPEG, {"road": 1.0}, {"road": "#000000"})


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("large", DataError, "cannot be predicted: 9x9 pixels are more$"),
        ("broken", ModelError, "cannot be loaded"),
        ("dead", ModelError, "its process ended with -6"),
    ],
)
def test_what_the_child_says_of_its_failure_is_told(
    stand_in: Callable[..., Prediction], kind: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        stand_in(kind)


def test_a_prediction_that_takes_too_long_is_killed(stand_in: Callable[..., Prediction]) -> None:
    with pytest.raises(DataError, match="took longer than"):
        stand_in("slow", time_limit_s=0.2)


def upload(*parts: bytes, boundary: bytes = b"xyz", end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + end


FIELD = b'Content-Disposition: form-data; name="key"\r\n\r\nabc'
FILE = b'Content-Disposition: form-data; name="picture"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'


def test_a_form_with_a_file_is_split_as_it_was_sent() -> None:
    pixels = bytes(range(256)) * 3 + b"\r\n--xy\r\n"
    assert split_upload('multipart/form-data; boundary="xyz"', upload(FIELD, FILE + pixels)) == ({"key": "abc"}, pixels)
    assert split_upload("multipart/form-data; boundary=xyz", upload()[2:].replace(b"xyz", b"--xyz")) == ({}, b"")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", upload(FIELD)),
        ("multipart/form-data; boundary=", upload(FIELD)),
        ("multipart/form-data; boundary=" + "x" * 71, upload(FIELD)),
        ("multipart/form-data; boundary=abc", upload(FIELD)),
        ("multipart/form-data; boundary=xyz", b""),
        ("multipart/form-data; boundary=xyz", upload(FIELD)[:-4]),
        ("multipart/form-data; boundary=xyz", upload(FIELD) + b"more"),
        ("multipart/form-data; boundary=xyz", upload(b"no head")),
        ("multipart/form-data; boundary=xyz", upload(b"X-Other: 1\r\n\r\nabc")),
        ("multipart/form-data; boundary=xyz", upload(b"Content-Disposition: form-data\r\n\r\nabc")),
        ("multipart/form-data; boundary=xyz", upload(b"X: " + b"x" * 5000 + b"\r\n\r\nabc")),
        ("multipart/form-data; boundary=xyz", upload(*[FIELD] * 21)),
    ],
)
def test_what_is_no_form_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(AccessError, match="did not arrive"):
        split_upload(content_type, body)
