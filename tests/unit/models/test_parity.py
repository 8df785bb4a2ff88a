"""Both Segmenters against the plain implementation, LayerNorm eps 1e-5 throughout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plain_segmenter import decode_masks, encode, linear, part
from segfleet_models.decoder import LinearDecoder, MaskTransformerDecoder
from segfleet_models.encoder import Encoder
from segfleet_models.segmenter import Segmenter

HEADS = {"test_vit": 2, "deit_tiny_distilled_patch16_224": 3}


def randomised(model: Segmenter) -> Segmenter:
    """Every parameter away from its start, so that a norm's weight of 1 or a bias of 0 hides nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def make_segmenter(backbone: str, patch: int, decoder: str, num_classes: int) -> Segmenter:
    torch.manual_seed(0)
    torch.manual_seed(0)
    encoder = Encoder(backbone, patch_size=patch, img_size=64, drop_path_rate=0.1, layer_norm_eps=1e-5)
    if decoder == "linear":
        return randomised(Segmenter(encoder, LinearDecoder(encoder.embed_dim, num_classes)))
    return randomised(Segmenter(encoder, MaskTransformerDecoder(encoder.embed_dim, num_classes, num_layers=2)))


@pytest.mark.parametrize("decoder", ["linear", "mask"])
@pytest.mark.parametrize(
    ("backbone", "patch", "size"),
    [
        ("test_vit", 16, (64, 64)),  # the stored grid
        ("test_vit", 8, (64, 64)),
        ("test_vit", 16, (32, 128)),  # as many tokens as the stored grid, other shape
        ("test_vit", 16, (50, 71)),  # padded to 64 x 80
        ("deit_tiny_distilled_patch16_224", 16, (64, 48)),  # a second prefix token
    ],
)
def test_forward_equals_the_plain_implementation(
    backbone: str, patch: int, size: tuple[int, int], decoder: str
) -> None:
    # In double precision: the norm over five classes may blow single precision's last bits up beyond any tolerance.
    model = make_segmenter(backbone, patch, decoder, num_classes=5).double()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    height, width = size

    with torch.no_grad():
        ours = model.upsample(model(images), size)

        state = model.state_dict()
        padded = F.pad(images, (0, -width % patch, 0, -height % patch))
        grid = (padded.shape[2] // patch, padded.shape[3] // patch)
        tokens = encode(padded, part(state, "encoder.vit."), patch, 64 // patch, HEADS[backbone])
        if decoder == "linear":
            logits = linear(tokens, part(state, "decoder.head."))
        else:
            logits = decode_masks(tokens, part(state, "decoder."), 2, max(1, tokens.shape[2] // 64))
        logits = logits.transpose(1, 2).reshape(2, 5, *grid)
        plain = F.interpolate(logits, size=padded.shape[2:], mode="bilinear", align_corners=False)

    torch.testing.assert_close(ours, plain[:, :, :height, :width], rtol=1e-5, atol=1e-5)
