"""Segmenter: an encoder, a decoder, and the way from raw pixels to scores of any size.

Shapes: B batch, K classes, H W pixels, h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfleet_models.decoder import LinearDecoder, MaskTransformerDecoder
from segfleet_models.encoder import Encoder


class Segmenter(nn.Module):
    """A plain ViT with a decoder that scores its patches.

    The forward pass stops at one score per patch; `upsample` goes on to pixels. Kept apart because the loss and the
    sliding window need the large maps only piece by piece.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, decoder: LinearDecoder | MaskTransformerDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.patch_size = encoder.patch_size
        self.num_classes = decoder.num_classes
        # Not in the state dict: they follow from the backbone's name.
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Score every patch.

        Args:
            images: Normalised pictures (see `normalise`), (B, 3, H, W) of any size; padded right and below with 0, the
                mean colour, to whole patches.

        Returns:
            Patch logits, (B, K, h, w) with h = ceil(H / patch_size), w likewise.
        """
        height, width = images.shape[-2:]
        below, right = -height % self.patch_size, -width % self.patch_size
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        grid_size = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        logits: Tensor = self.decoder(self.encoder(images), grid_size)
        return logits

    def upsample(self, patch_logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Patch logits (B, K, h, w) to pixel logits (B, K, H, W); see `upsample_logits`."""
        return upsample_logits(patch_logits, self.patch_size, size)

    def normalise(self, images: Tensor, extents: Tensor | None = None) -> Tensor:
        """Make raw pixels what the backbone's weights expect.

        Args:
            images: RGB, uint8, (B, H, W, 3).
            extents: Height and width of the picture inside each padded frame, integers (B, 2); pixels right of or below
                it come out as 0, the mean colour. None: no padding.

        Returns:
            float32, (B, 3, H, W).
        """
        pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        pixels = pixels.sub_(self.mean * 255).div_(self.std * 255)
        if extents is None:
            return pixels
        extents = extents.to(images.device)
        rows = torch.arange(pixels.shape[2], device=images.device) < extents[:, :1]
        columns = torch.arange(pixels.shape[3], device=images.device) < extents[:, 1:]
        return pixels.mul_(rows[:, None, :, None] & columns[:, None, None, :])

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are embeddings, which the paper's recipe keeps out of weight decay."""
        embeddings = ("pos_embed", "cls_token", "dist_token", "reg_token", "cls_emb")
        return {name for name, _ in self.named_parameters() if name.endswith(embeddings)}


def upsample_logits(patch_logits: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """Bilinear to the padded size (whole patches), then cut to the picture.

    Args:
        patch_logits: (B, K, h, w).
        patch_size: Side of a patch in pixels.
        size: (H, W) of the picture before padding.

    Returns:
        (B, K, H, W), same dtype.

    Raises:
        ValueError: h and w are not the patches that a picture of this size has.
    """
    check_patches_cover(patch_logits.shape[-2:], patch_size, size)
    padded_size = (patch_logits.shape[-2] * patch_size, patch_logits.shape[-1] * patch_size)
    padded = F.interpolate(patch_logits, size=padded_size, mode="bilinear", align_corners=False)
    return padded[..., : size[0], : size[1]]


def check_patches_cover(grid_size: Sequence[int], patch_size: int, size: Sequence[int]) -> None:
    """Make sure that a picture of `size` (H, W) in pixels is cut into `grid_size` (h, w) patches.

    Raises:
        ValueError: it is not.
    """
    expected = [-(-side // patch_size) for side in size]
    if list(grid_size) != expected:
        (grid_height, grid_width), (height, width) = grid_size, size
        raise ValueError(
            f"{grid_height}x{grid_width} patches of {patch_size} pixels do not cover a picture of {height}x{width}"
        )
