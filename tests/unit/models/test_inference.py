from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plain_evaluation import FixedLogits, plain_probabilities
from segfleet_models import inference
from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.inference import (
    WindowConfig,
    pass_size,
    predict,
    predict_many,
    predict_probabilities,
    window_starts,
)
from segfleet_models.segmenter import Segmenter


def make_model(num_classes: int = 5) -> Segmenter:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig("test_vit", 8, "linear", num_classes, 32)).eval()
    with torch.no_grad():
        model.decoder.head.weight.normal_()  # type: ignore[union-attr]
    return model


def make_image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("side", "window", "stride", "starts"),
    [
        (512, 512, 480, [0]),
        (683, 512, 480, [0, 171]),
        (992, 512, 480, [0, 480]),  # the second window is flush by itself
        (993, 512, 480, [0, 480, 481]),
        (2048, 768, 512, [0, 512, 1024, 1280]),
        (5, 2, 1, [0, 1, 2, 3]),
    ],
)
def test_window_starts(side: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(side, window, stride) == starts


@pytest.mark.parametrize("stride", range(1, 9))
def test_windows_cover_every_pixel_and_never_leave_the_picture(stride: int) -> None:
    for side in range(8, 60):
        starts = window_starts(side, 8, stride)
        assert {start + i for start in starts for i in range(8)} == set(range(side))
        assert len(set(starts)) == len(starts)


def test_a_side_below_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="31 pixels is shorter than the window of 32"):
        window_starts(31, 32, 16)


@pytest.mark.parametrize(
    ("size", "config", "scale", "expected"),
    [
        ((300, 400), WindowConfig(128, 128), 1.0, (300, 400)),
        ((300, 400), WindowConfig(512, 480, 512), 1.0, (512, 683)),
        ((1024, 2048), WindowConfig(768, 736, 1024), 1.0, (1024, 2048)),
        ((300, 400), WindowConfig(512, 480, 512), 1.25, (640, 853)),
        ((400, 300), WindowConfig(512, 480, 512), 0.5, (682, 512)),  # shrunk, then blown up to the window
        ((20, 10), WindowConfig(32, 32), 1.0, (64, 32)),
        ((1, 1), WindowConfig(32, 32), 0.1, (32, 32)),
    ],
)
def test_pass_size(size: tuple[int, int], config: WindowConfig, scale: float, expected: tuple[int, int]) -> None:
    assert pass_size(size, config, scale) == expected


@pytest.mark.parametrize(
    "bad", [{"stride": 33}, {"stride": 0}, {"short_side": 0}, {"scales": ()}, {"scales": (1.0, 0.0)}]
)
def test_settings_that_skip_pixels_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        WindowConfig(**({"window": 32, "stride": 16} | bad))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        WindowConfig(32, 32),
        WindowConfig(32, 20),
        WindowConfig(30, 20),  # a window that is no whole number of patches
        WindowConfig(32, 24, short_side=40),
        WindowConfig(32, 24, scales=(0.5, 1.0, 1.75), flip=True),
        WindowConfig(64, 64, short_side=40, flip=True),
        WindowConfig(32, 24, scales=(0.5, 1.0, 1.75), flip=True, protocol="mmseg"),
        WindowConfig(30, 20, protocol="mmseg"),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (50, 71), (90, 33), (20, 25)])
def test_labels_are_those_of_the_plain_protocol(config: WindowConfig, size: tuple[int, int]) -> None:
    model, image = make_model(), make_image(*size)
    with torch.no_grad():
        expected = plain_probabilities(model, image, config)
    torch.testing.assert_close(
        predict_probabilities(model, image, config).permute(2, 0, 1), expected, rtol=0, atol=1e-5
    )
    labels = predict(model, image, config)
    assert labels.shape == size
    assert labels.dtype == torch.uint8
    best = expected.max(0).values - expected.gather(0, labels.long()[None])[0]
    assert best.max() < 1e-5  # rounding may only decide between equals
    assert len(labels.unique()) > 1


def test_a_picture_that_may_not_be_written_to_is_taken() -> None:
    """As Pillow gives them; PyTorch would warn."""
    model, image = make_model(), make_image(32, 32)
    picture = image.numpy().copy()
    picture.flags.writeable = False
    assert torch.equal(predict(model, picture, WindowConfig(32, 32)), predict(model, image, WindowConfig(32, 32)))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("size", "num_classes", "config"),
    [
        ((512, 683), 150, WindowConfig(512, 480, 512, flip=True)),  # ADE20K
        ((520, 693), 60, WindowConfig(480, 320, 520)),  # Pascal Context
        ((375, 500), 60, WindowConfig(480, 448, 520, flip=True)),  # and resized back to the picture
        ((1024, 2048), 19, WindowConfig(768, 512, 1024)),  # Cityscapes
    ],
)
def test_same_labels_at_the_datasets_sizes(size: tuple[int, int], num_classes: int, config: WindowConfig) -> None:
    starts = [window_starts(side, config.window, config.stride) for side in pass_size(size, config, 1.0)]
    num_windows = (1 + config.flip) * len(starts[0]) * len(starts[1])
    model = FixedLogits(num_classes, 16, (config.window // 16, config.window // 16), num_windows)
    image = torch.zeros(*size, 3, dtype=torch.uint8)
    expected = plain_probabilities(model, image, config).argmax(0)
    labels = predict(model, image, config)  # type: ignore[arg-type]
    assert (labels == expected).float().mean() >= 0.99999


def test_mmseg_takes_smaller_windows_and_the_reference_enlarges() -> None:
    seen = []
    model = make_model()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    for protocol in ("reference", "mmseg"):
        predict(model, make_image(20, 40), WindowConfig(32, 32, protocol=protocol))
    assert seen == [(32, 32), (20, 32)]
    with pytest.raises(ValueError, match="'plain' must be reference or mmseg"):
        WindowConfig(32, 32, protocol="plain")


def test_a_picture_shrunk_below_the_window_is_looked_at_blurred() -> None:
    seen = []
    model = make_model()
    model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].split(1)))
    predict(model, make_image(32, 32), WindowConfig(32, 32, scales=(0.25, 1.0)))
    blurred, sharp = (pixels.diff(dim=3).abs().mean() for pixels in seen)
    assert blurred < sharp / 4


def test_never_holds_all_classes_of_a_picture_at_full_size() -> None:
    """The bound of 4 GiB for 8,000 x 8,000 pixels and 150 classes is 1/9 of one map; here the same at 600 pixels."""
    model = FixedLogits(150, 16, (8, 8), 36)
    image = torch.zeros(600, 600, 3, dtype=torch.uint8)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return result

    with Watch():
        predict(model, image, WindowConfig(128, 96))  # type: ignore[arg-type]
    assert 0 < largest < 600 * 600 * 150 * 4 / 9


@pytest.mark.parametrize("num_bytes", [1, 200_000])
def test_a_picture_in_bands_scores_each_window_once_and_gives_the_same(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = make_model(), make_image(150, 90)
    num_seen = 0

    def count(_: object, inputs: tuple[Tensor]) -> None:
        nonlocal num_seen
        num_seen += len(inputs[0])

    model.register_forward_pre_hook(count)
    for config in (
        WindowConfig(32, 20, scales=(0.5, 1.0, 1.75), flip=True),
        WindowConfig(32, 32),
        WindowConfig(30, 11, protocol="mmseg"),
        WindowConfig(32, 24, short_side=130),
    ):
        num_seen = 0
        whole = predict_probabilities(model, image, config)
        windows, num_seen = num_seen, 0
        with monkeypatch.context() as patch:
            patch.setattr(inference, "_LOGIT_BYTES", num_bytes)
            banded = predict_probabilities(model, image, config)
        assert num_seen == windows
        torch.testing.assert_close(banded, whole, rtol=0, atol=1e-5)


def test_bands_bound_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_LOGIT_BYTES", 100_000)
    largest = 0
    create = inference.Mosaic

    def watched(*arguments: Any) -> inference.Mosaic:
        nonlocal largest
        mosaic = create(*arguments)
        largest = max(largest, mosaic.logits.nbytes)
        return mosaic

    monkeypatch.setattr(inference, "Mosaic", watched)
    model, config = FixedLogits(150, 16, (2, 2), 2500), WindowConfig(32, 24)
    predict(model, torch.zeros(1200, 100, 3, dtype=torch.uint8), config)  # type: ignore[arg-type]
    assert 0 < largest < 100_000 + 2 * 2 * 8 * 150 * 4  # and a row of windows above and below


@pytest.mark.parametrize("num_bytes", [1, 2**29])
def test_several_pictures_give_what_each_alone_gives(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_LOGIT_BYTES", num_bytes)
    model, config = make_model(), WindowConfig(32, 24, flip=True, protocol="mmseg")
    images = [make_image(*size) for size in ((32, 32), (50, 71), (20, 25), (32, 32))]
    alone = [predict(model, image, config) for image in images]
    batches = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    together = predict_many(model, images, config)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    # 2 + 12 + 2 + 2 windows: the sizes never mix, and a picture in bands stays alone.
    assert sum(batches) == 18
    assert batches[:2] == ([2, 4] if num_bytes == 1 else [4, 4])


@pytest.mark.parametrize(("most", "expected"), [(2**20, [4, 2]), (2 * 32 * 32, [2, 2, 2]), (1, [1] * 6)])
def test_large_windows_go_through_a_processor_one_by_one(
    most: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_CPU_BATCH_PIXELS", most)
    model, batches = make_model(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    predict(model, make_image(64, 96), WindowConfig(32, 32))
    assert batches == expected


def test_takes_arrays_and_answers_with_a_tensor_of_its_own() -> None:
    image = make_image(40, 50)
    labels = predict(make_model(), image.numpy(), WindowConfig(32, 32))
    assert torch.equal(labels, predict(make_model(), image, WindowConfig(32, 32)))
    labels += 1  # an inference tensor would refuse
    assert np.asarray(labels).shape == (40, 50)


def test_more_than_255_classes_need_wider_labels() -> None:
    assert predict(make_model(300), make_image(32, 32), WindowConfig(32, 32)).dtype == torch.int16


@pytest.mark.parametrize("image", [torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8), np.zeros((4, 4))])
def test_refuses_what_is_no_picture(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 3\)"):
        predict(make_model(), image, WindowConfig(32, 32))


def test_refuses_a_model_in_training_mode() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        predict(make_model().train(), make_image(32, 32), WindowConfig(32, 32))
