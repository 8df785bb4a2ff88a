"""The systems the paper is compared with, on networks that give maps of several sizes.

DeepLabv3+ (Chen et al. 2018), U-Net (Ronneberger et al. 2015) and UPerNet (Xiao et al. 2018) are those of
segmentation_models_pytorch, FCN (Long et al. 2015) has the head of MMSegmentation's FCN-D8; all encoders are timm's.
The last enlargement is left to `upsample`. This module is the only door to segmentation_models_pytorch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders.timm_universal import TimmUniversalEncoder
from torch import Tensor, nn

from segfleet_models.encoder import load_exactly
from segfleet_models.segmenter import SegmentationModel, cut_to_picture, pad_to_multiple

ConvolutionalArch = Literal["deeplabv3plus", "fcn", "unet", "upernet"]
# Every encoder's coarsest map has this stride, dilated or not.
_DIVISOR = 32
_FCN_WIDTH = 512
_UPERNET_WIDTH = 512
# Parts of a classifier that a weights file may hold and an encoder of maps has no use for.
_UNUSED_KEYS = re.compile(
    r"(head|fc|classifier|norm|last_linear)\..*|.*\.num_batches_tracked|.*(attn_mask|relative_position_index)"
)
# timm flattens the stages of such an encoder: `layers.0` becomes `layers_0`.
_FLATTENED = re.compile(r"^(layers|stages|stem|features|blocks)_(\d+)\.")
_STAGE = re.compile(r"(?:layers?|stages|blocks)[_.]?(\d)\.")


class ConvolutionalSegmenter(SegmentationModel):
    """An encoder of maps, a decoder that joins them, and a layer that scores the places of the result.

    Args:
        arch: The system.
        backbone: timm name of a network that gives maps of strides 4, 8, 16 and 32.
        num_classes: K.
        img_size: Side of the training crop, pixels; for backbones that want to know it.
        drop_path: Stochastic depth of the encoder's last block, in [0, 1).
        decoder_dropout: Of whole channels before the last layer, in [0, 1).
        mean: Replaces the backbone's own, per channel (RGB), in units of [0, 1].
        std: The same for the standard deviation.

    Raises:
        ValueError: timm knows no such network of maps, or it does not go with the system.
    """

    def __init__(
        self,
        arch: ConvolutionalArch,
        backbone: str,
        num_classes: int,
        *,
        img_size: int,
        drop_path: float = 0.0,
        decoder_dropout: float = 0.0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        defaults = _published(backbone)
        super().__init__(num_classes, _STRIDES[arch], mean or defaults.mean, std or defaults.std)
        try:
            parts = _PARTS[arch](backbone, num_classes, _options(backbone, img_size, drop_path))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"backbone {backbone!r} does not go with arch {arch!r} ({error}); "
                "take a ResNet, or for unet and upernet any network with maps of strides 4 to 32"
            ) from error
        self.encoder, self.decoder, self.head = parts
        self.dropout = nn.Dropout2d(decoder_dropout) if decoder_dropout else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Score places of `output_stride` pixels.

        Args:
            images: Normalised pictures, (B, 3, H, W) of any size; padded right and below with 0, the mean colour, to a
                multiple of 32.

        Returns:
            Logits, (B, K, h, w) with h = ceil(H / output_stride), w likewise.
        """
        height, width = images.shape[-2:]
        features = self.encoder(pad_to_multiple(images, _DIVISOR))
        logits = self.head(self.dropout(self.decoder(features)))
        return cut_to_picture(logits, (height, width), self.output_stride)

    def layer_of(self, name: str) -> int:
        """0 the stem, then the stages from 1, then all else."""
        stages = {int(found[1]) for key, _ in self.encoder.named_parameters() if (found := _STAGE.search(key))}
        if not name.startswith("encoder."):
            return len(stages) + 1
        stage = _STAGE.search(name)
        return 0 if stage is None else sorted(stages).index(int(stage[1])) + 1

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over timm's weights of the encoder; the classifier's own parts are left out.

        Args:
            state: timm parameter names to tensors.

        Raises:
            ValueError: names or shapes do not fit; lists what is missing, unexpected or of another shape.
        """
        network = cast(nn.Module, self.encoder.model)
        own = {_FLATTENED.sub(r"\1.\2.", key): key for key in network.state_dict()}
        wanted = {own.get(key, key): t for key, t in state.items() if key in own or not _UNUSED_KEYS.fullmatch(key)}
        found = {key: t.float() if t.is_floating_point() else t for key, t in wanted.items()}
        # Counters and tables that follow from the architecture; files often lack them.
        kept = {key: t for key, t in network.state_dict().items() if key not in found and _UNUSED_KEYS.fullmatch(key)}
        load_exactly(network, found | kept)


class _FcnDecoder(nn.Module):
    """Two 3x3 convolutions on the encoder's last map, and a third that looks at it again beside their result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(_convolution(channels, _FCN_WIDTH), _convolution(_FCN_WIDTH, _FCN_WIDTH))
        self.join = _convolution(channels + _FCN_WIDTH, _FCN_WIDTH)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last of the maps, (B, C, h, w), to (B, 512, h, w)."""
        last = features[-1]
        joined: Tensor = self.join(torch.cat([last, self.convs(last)], dim=1))
        return joined


Parts = tuple[nn.Module, nn.Module, nn.Module]


def _deeplabv3plus(backbone: str, num_classes: int, options: dict[str, Any]) -> Parts:
    net = smp.DeepLabV3Plus(
        f"tu-{backbone}", encoder_weights=None, classes=num_classes, upsampling=1, decoder_aspp_dropout=0.0, **options
    )
    return net.encoder, net.decoder, net.segmentation_head


def _unet(backbone: str, num_classes: int, options: dict[str, Any]) -> Parts:
    net = smp.Unet(f"tu-{backbone}", encoder_weights=None, classes=num_classes, **options)
    return net.encoder, net.decoder, net.segmentation_head


def _upernet(backbone: str, num_classes: int, options: dict[str, Any]) -> Parts:
    net = smp.UPerNet(
        f"tu-{backbone}",
        encoder_weights=None,
        classes=num_classes,
        upsampling=1,
        decoder_channels=_UPERNET_WIDTH,
        **options,
    )
    return net.encoder, net.decoder, net.segmentation_head


def _fcn(backbone: str, num_classes: int, options: dict[str, Any]) -> Parts:
    encoder = TimmUniversalEncoder(backbone, pretrained=False, output_stride=8, **options)
    return encoder, _FcnDecoder(encoder.out_channels[-1]), nn.Conv2d(_FCN_WIDTH, num_classes, 1)


_PARTS: dict[str, Callable[[str, int, dict[str, Any]], Parts]] = {
    "deeplabv3plus": _deeplabv3plus,
    "fcn": _fcn,
    "unet": _unet,
    "upernet": _upernet,
}
_STRIDES = {"deeplabv3plus": 4, "fcn": 8, "unet": 1, "upernet": 4}


def pretrained_features(backbone: str) -> dict[str, Tensor]:
    """The weights timm publishes for a backbone, fetched from its hub or the local cache.

    Raises:
        ValueError: timm has no weights under this name, or they cannot be fetched.
    """
    _published(backbone)
    try:
        state: dict[str, Tensor] = timm.create_model(backbone, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no weights for backbone {backbone!r}: {error}; give a local weights file or train from random weights"
        ) from error
    return state


def _published(backbone: str) -> Any:
    """What timm says of the backbone's weights."""
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone.split(".")[0], timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "for instance resnet101"
        raise ValueError(f"{backbone!r} is not known to timm; {hint}")
    return timm.get_pretrained_cfg(backbone)


def _options(backbone: str, img_size: int, drop_path: float) -> dict[str, Any]:
    options: dict[str, Any] = {"drop_path_rate": drop_path}
    if backbone.startswith("swin"):
        # Its windows keep their size on maps smaller than they are, so that published weights fit whatever the crop.
        size = -(-img_size // _DIVISOR) * _DIVISOR
        options |= {"img_size": size, "dynamic_img_size": True, "strict_img_size": False, "always_partition": True}
    return options


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )
