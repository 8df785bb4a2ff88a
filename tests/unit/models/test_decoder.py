from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segfleet_models.decoder import LinearDecoder, MaskTransformerDecoder


@pytest.mark.parametrize("decoder", [LinearDecoder(64, 5), MaskTransformerDecoder(64, 5)])
def test_scores_every_patch_row_major(decoder: nn.Module) -> None:
    decoder.eval()
    tokens = torch.randn(2, 6, 64)
    logits = decoder(tokens, (2, 3))
    assert logits.shape == (2, 5, 2, 3)
    assert logits.is_contiguous()
    # The last patch of the first row is token 2: with its content moved, exactly its place must follow.
    swapped = decoder(tokens[:, [0, 1, 5, 3, 4, 2]], (2, 3))
    torch.testing.assert_close(swapped[:, :, 0, 2], logits[:, :, 1, 2])


@pytest.mark.parametrize("decoder", [LinearDecoder(64, 5), MaskTransformerDecoder(64, 5)])
def test_refuses_a_grid_of_another_size(decoder: nn.Module) -> None:
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2x4"):
        decoder(torch.randn(1, 6, 64), (2, 4))


def test_starts_as_the_reference_does() -> None:
    torch.manual_seed(0)
    decoder = MaskTransformerDecoder(256, 40)
    assert decoder.proj_patch.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert decoder.proj_classes.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert decoder.cls_emb.std().item() == pytest.approx(0.02, rel=0.03)
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5
            assert (module.weight == 1).all()
            assert not module.bias.any()
    linear = LinearDecoder(256, 40).head
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not linear.bias.any()


def test_dropout_and_drop_path_act_in_training_only() -> None:
    tokens = torch.randn(4, 6, 64)
    for options in ({"dropout": 0.5}, {"dropout": 0.0, "drop_path_rate": 0.9}):
        decoder = MaskTransformerDecoder(64, 5, **options)
        assert not torch.equal(decoder(tokens, (2, 3)), decoder(tokens, (2, 3)))
        decoder.eval()
        assert torch.equal(decoder(tokens, (2, 3)), decoder(tokens, (2, 3)))


def test_without_dropout_training_mode_is_deterministic() -> None:
    decoder = MaskTransformerDecoder(64, 5, dropout=0.0)
    tokens = torch.randn(1, 6, 64)
    assert torch.equal(decoder(tokens, (2, 3)), decoder(tokens, (2, 3)))


def test_refuses_a_width_that_has_no_heads() -> None:
    with pytest.raises(ValueError, match="200 channels cannot be split into 3 heads"):
        MaskTransformerDecoder(200, 5)


@pytest.mark.parametrize(("num_classes", "is_normed"), [(2, False), (3, False), (4, True), (150, True)])
def test_few_classes_are_scaled_instead_of_normed(num_classes: int, is_normed: bool) -> None:
    assert isinstance(MaskTransformerDecoder(64, num_classes).mask_norm, nn.LayerNorm) == is_normed


def test_two_classes_train_to_confidence() -> None:
    """A LayerNorm over two classes starts at a loss of log(1 + exp(-2)) = 0.127 at best, with next to no gradient."""
    torch.manual_seed(0)
    decoder = MaskTransformerDecoder(64, 2, num_layers=1, dropout=0.0)
    target = torch.tensor([[[0, 1, 1, 0], [1, 0, 1, 0]]])
    tokens = torch.randn(1, 8, 64) * 0.3 + torch.where(target.view(1, 8, 1) == 1, 1.0, -1.0) * torch.randn(64)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
    for _ in range(60):
        loss = F.cross_entropy(decoder(tokens, (2, 4)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    # Confidence is graded, not a sign: the scores of a mixture lie between those of its parts.
    mixed = decoder((tokens[:, :1] + tokens[:, 1:2]) / 2, (1, 1)).flatten().softmax(0)
    assert 0.02 < mixed[0].item() < 0.98
