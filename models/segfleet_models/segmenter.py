"""Models: an encoder, a decoder, and the way from raw pixels to scores of any size.

Shapes: B batch, K classes, H W pixels, h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfleet_models.encoder import Encoder


class SegmentationModel(nn.Module):
    """What every architecture here has in common: raw pixels in, logits of coarse places out.

    The forward pass stops at one score per `output_stride` pixels; `upsample` goes on to pixels. Kept apart because the
    loss and the sliding window need the large maps only piece by piece.

    Args:
        num_classes: K.
        output_stride: Pixels that one logit stands for along a side.
        mean: Of the pixels the weights expect, per channel (RGB), in units of [0, 1].
        std: The same for the standard deviation.

    Attributes:
        encoder: What comes from pre-training; its parameters are all those whose names begin with `encoder.`.
    """

    mean: Tensor
    std: Tensor
    encoder: nn.Module

    def __init__(
        self,
        num_classes: int,
        output_stride: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.output_stride = output_stride
        # Not in the state dict: they follow from the backbone's name.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def layer_of(self, name: str) -> int:
        """How deep a parameter of this name lies, for rates that fall with the depth: 0 is the picture's side, all that
        is not the encoder's lies on top.
        """
        raise NotImplementedError

    def set_checkpoint_activations(self, enabled: bool) -> None:
        """Make activations again in the backward pass instead of keeping them: same gradients, less memory, more time.

        Raises:
            ValueError: the architecture cannot.
        """
        if enabled:
            raise ValueError(f"{type(self).__name__} keeps its activations; only plain ViT encoders can do without")

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) to pixel logits (B, K, H, W); see `upsample_logits`."""
        return upsample_logits(logits, self.output_stride, size)

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
        embeddings = ("pos_embed", "cls_token", "dist_token", "reg_token", "cls_emb", "relative_position_bias_table")
        return {name for name, _ in self.named_parameters() if name.endswith(embeddings)}


class TokenDecoder(Protocol):
    """Scores the tokens of a plain ViT.

    Attributes:
        num_classes: K.
        scale: Logits along the side of one patch.
        layers: Blocks of the encoder, from 1, whose tokens it takes besides the last ones.
    """

    num_classes: int
    scale: int
    layers: tuple[int, ...]


class Segmenter(SegmentationModel):
    """A plain ViT with a decoder that scores its patches.

    Args:
        encoder: The ViT.
        decoder: A module that is a `TokenDecoder`; called with the list of levels it asks for, or if it asks for none
            with the last tokens (B, N, C), and with the grid's size (h, w), it returns (B, K, scale * h, scale * w).
    """

    encoder: Encoder

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        described = cast(TokenDecoder, decoder)
        super().__init__(described.num_classes, encoder.patch_size // described.scale, encoder.mean, encoder.std)
        self.encoder = encoder
        self.decoder = decoder
        self._layers = described.layers
        self._patch_size = encoder.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Score every patch.

        Args:
            images: Normalised pictures (see `normalise`), (B, 3, H, W) of any size; padded right and below with 0, the
                mean colour, to whole patches.

        Returns:
            Logits, (B, K, h, w) with h = ceil(H / output_stride), w likewise.
        """
        height, width = images.shape[-2:]
        images = pad_to_multiple(images, self._patch_size)
        grid_size = (images.shape[-2] // self._patch_size, images.shape[-1] // self._patch_size)
        tokens = self.encoder.levels(images, self._layers) if self._layers else self.encoder(images)
        return cut_to_picture(self.decoder(tokens, grid_size), (height, width), self.output_stride)

    def layer_of(self, name: str) -> int:
        """0 the embeddings, then the blocks from 1, then all else."""
        if name.startswith("encoder."):
            return self.encoder.layer_of(name.removeprefix("encoder."))
        return self.encoder.depth + 1

    def set_checkpoint_activations(self, enabled: bool) -> None:
        """See `SegmentationModel`; the encoder's blocks, of which there are many more than the decoder's."""
        self.encoder.recomputes = enabled


def pad_to_multiple(images: Tensor, divisor: int) -> Tensor:
    """Pictures (B, C, H, W) padded right and below with 0 until the divisor divides both sides."""
    below, right = -images.shape[-2] % divisor, -images.shape[-1] % divisor
    return F.pad(images, (0, right, 0, below)) if below or right else images


def cut_to_picture(logits: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Logits of a padded picture without those that lie wholly beyond a picture of `size` (H, W)."""
    height, width = (-(-side // stride) for side in size)
    if tuple(logits.shape[-2:]) == (height, width):
        return logits
    return logits[..., :height, :width].contiguous()


def upsample_logits(patch_logits: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Bilinear to the padded size (whole patches), then cut to the picture.

    Args:
        patch_logits: (B, K, h, w).
        stride: Pixels that one logit stands for along a side; a patch's side.
        size: (H, W) of the picture before padding.

    Returns:
        (B, K, H, W), same dtype.

    Raises:
        ValueError: h and w are not the patches that a picture of this size has.
    """
    check_patches_cover(patch_logits.shape[-2:], stride, size)
    padded_size = (patch_logits.shape[-2] * stride, patch_logits.shape[-1] * stride)
    padded = F.interpolate(patch_logits, size=padded_size, mode="bilinear", align_corners=False)
    return padded[..., : size[0], : size[1]]


def check_patches_cover(grid_size: Sequence[int], stride: int, size: Sequence[int]) -> None:
    """Make sure that a picture of `size` (H, W) in pixels is cut into `grid_size` (h, w) patches.

    Raises:
        ValueError: it is not.
    """
    expected = [-(-side // stride) for side in size]
    if list(grid_size) != expected:
        (grid_height, grid_width), (height, width) = grid_size, size
        raise ValueError(
            f"{grid_height}x{grid_width} patches of {stride} pixels do not cover a picture of {height}x{width}"
        )
