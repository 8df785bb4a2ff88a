from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segfleet_models import losses
from segfleet_models.losses import cross_entropy_sum

IGNORE = 255


def make_target(*shape: int, num_classes: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, num_classes, shape, generator=generator, dtype=torch.uint8)
    target[:, 0, ::2] = IGNORE
    return target


@pytest.mark.parametrize("patch", [1, 3, 8, 14, 16, 32])
@pytest.mark.parametrize("cut", [(0, 0), (1, 0), (2, 7)])
def test_equals_upsampling_then_cross_entropy(patch: int, cut: tuple[int, int]) -> None:
    size = (4 * patch - cut[0] % patch, 3 * patch - cut[1] % patch)
    logits = torch.randn(2, 5, 4, 3, requires_grad=True)
    target = make_target(2, *size)
    total, num_valid = cross_entropy_sum(logits, target, patch, IGNORE)
    (gradient,) = torch.autograd.grad(total / num_valid, logits)

    pixels = F.interpolate(logits, scale_factor=patch, mode="bilinear")[..., : size[0], : size[1]]
    expected = F.cross_entropy(pixels, target.long(), ignore_index=IGNORE)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(total / num_valid, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_hand_computed() -> None:
    logits = torch.zeros(1, 4, 1, 1)
    target = torch.tensor([[[0, 1], [2, IGNORE]]])
    total, num_valid = cross_entropy_sum(logits, target, 2, IGNORE)
    assert num_valid.item() == 3
    assert num_valid.dtype == torch.int64
    assert total.item() == pytest.approx(3 * torch.tensor(4.0).log().item())


def test_parts_of_a_batch_add_up() -> None:
    logits, target = torch.randn(3, 5, 2, 2), make_target(3, 32, 32)
    target[0] = IGNORE
    target[1, :20] = IGNORE
    whole = cross_entropy_sum(logits, target, 16, IGNORE)
    parts = [cross_entropy_sum(logits[i : i + 1], target[i : i + 1], 16, IGNORE) for i in range(3)]
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0])
    assert sum(part[1] for part in parts) == whole[1]


def test_an_ignored_batch_gives_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(1, 5, 2, 2, requires_grad=True)
    total, num_valid = cross_entropy_sum(logits, torch.full((1, 32, 32), IGNORE, dtype=torch.uint8), 16, IGNORE)
    total.backward()
    assert (total.item(), num_valid.item()) == (0.0, 0)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_without_gradient_the_loss_is_the_same() -> None:
    logits, target = torch.randn(1, 5, 2, 2, requires_grad=True), make_target(1, 32, 32)
    total, _ = cross_entropy_sum(logits, target, 16, IGNORE)
    with torch.no_grad():
        assert torch.equal(cross_entropy_sum(logits, target, 16, IGNORE)[0], total)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    total, _ = cross_entropy_sum(logits, torch.ones(1, 2, 2, dtype=torch.int64), 2, IGNORE)
    total.backward()
    assert total.item() == pytest.approx(4 * 400)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([4, -4])


def test_low_precision_logits_are_scored_in_float32() -> None:
    logits, target = torch.randn(1, 5, 2, 2), make_target(1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = cross_entropy_sum(logits.bfloat16(), target, 16, IGNORE)
    expected, _ = cross_entropy_sum(logits.bfloat16().float(), target, 16, IGNORE)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)


def test_refuses_patches_of_another_size() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        cross_entropy_sum(torch.zeros(1, 5, 2, 2), make_target(1, 33, 32), 16, IGNORE)


WEIGHTS = (0.5, 0.0, 3.0, 1.0, 0.25)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothing_and_class_weights_are_torch_s(smoothing: float, weights: tuple[float, ...] | None) -> None:
    logits, target = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True), make_target(2, 23, 31)
    factors = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    total, weight = cross_entropy_sum(logits, target, 8, IGNORE, label_smoothing=smoothing, class_weights=factors)
    pixels = F.interpolate(logits, scale_factor=8, mode="bilinear")[..., :23, :31]

    def plain(reduction: str) -> torch.Tensor:
        return F.cross_entropy(
            pixels, target.long(), factors, ignore_index=IGNORE, reduction=reduction, label_smoothing=smoothing
        )

    torch.testing.assert_close(total, plain("sum"), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(total / weight, plain("mean"), rtol=1e-7, atol=1e-7)
    (gradient,) = torch.autograd.grad(total, logits)
    (expected,) = torch.autograd.grad(plain("sum"), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient_is_that_of_the_loss(smoothing: float, weights: tuple[float, ...] | None) -> None:
    logits, target = torch.randn(1, 5, 2, 2, dtype=torch.float64, requires_grad=True), make_target(1, 6, 5)
    factors = None if weights is None else torch.tensor(weights)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return cross_entropy_sum(values, target, 3, IGNORE, label_smoothing=smoothing, class_weights=factors)[0]

    assert torch.autograd.gradcheck(loss, (logits,))


def test_the_height_of_a_band_does_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = torch.randn(1, 5, 3, 2), make_target(1, 48, 32)
    total, _ = cross_entropy_sum(logits, target, 16, IGNORE)
    monkeypatch.setattr(losses, "_CPU_BAND_ROWS", 37)
    torch.testing.assert_close(cross_entropy_sum(logits, target, 16, IGNORE)[0], total)


def test_a_band_on_a_gpu_is_high_but_bounded() -> None:
    rows = losses._band_rows(8, 512, 150, torch.device("cuda"))
    assert 64 <= rows <= 128
    assert losses._band_rows(1024, 4096, 1000, torch.device("cuda")) == 8


def test_as_many_class_weights_as_classes() -> None:
    with pytest.raises(ValueError, match="3 class weights do not fit 5 classes"):
        cross_entropy_sum(torch.zeros(1, 5, 1, 1), make_target(1, 2, 2), 2, IGNORE, class_weights=torch.ones(3))


def test_heavy_classes_do_not_overflow_half_precision() -> None:
    """The gradient of a sum over many pixels may; what comes down from the mean does not."""
    logits = torch.zeros(1, 3, 2, 2, dtype=torch.float16, requires_grad=True)
    target = torch.full((1, 32, 32), 2, dtype=torch.uint8)
    total, weight = cross_entropy_sum(logits, target, 16, IGNORE, class_weights=torch.tensor([1.0, 1.0, 1000.0]))
    (total / weight).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0.1
