"""From a model's configuration to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from torch import nn

from segfleet_models.decoder import LinearDecoder, MaskTransformerDecoder
from segfleet_models.encoder import Encoder, pretrained_state
from segfleet_models.positions import POSITION_MODES, PositionMode
from segfleet_models.segmenter import SegmentationModel, Segmenter
from segfleet_models.setr import SetrDecoder, build_setr_decoder
from segfleet_models.weights import load_encoder_weights

Arch = Literal["segmenter", "setr", "deeplabv3plus", "fcn", "unet", "upernet"]
Decoder = Literal["mask", "linear", "naive", "pup", "mla"]
_ARCHS = ("segmenter", "setr", "deeplabv3plus", "fcn", "unet", "upernet")
# The decoders of each architecture on a plain ViT; the others have but their own.
_DECODERS: dict[str, tuple[str, ...]] = {"segmenter": ("mask", "linear"), "setr": ("naive", "pup", "mla")}


@dataclass(frozen=True)
class ModelConfig:
    """All that decides a model's architecture; stored beside its weights.

    Attributes:
        backbone: timm name of a plain ViT, or for other architectures than segmenter and setr of a network of maps.
        patch_size: Side of a patch, pixels; None for networks of maps.
        decoder: Segmenter: mask transformer or one linear layer; SETR: naive, pup or mla; None for others.
        num_classes: Classes that are scored, at least 2; an ignored label is none of them.
        img_size: Side of the training crop, pixels; the position embeddings are stored for it.
        decoder_layers: Blocks of the mask transformer.
        drop_path: Stochastic depth of the encoder's last block, in [0, 1).
        dropout: Encoder dropout, in [0, 1).
        decoder_drop_path: The same for the mask transformer.
        decoder_dropout: Inside the mask transformer, or before the last layer of any other decoder, in [0, 1).
        layer_norm_eps: Of the encoder; None: the backbone's own.
        position_mode: How position embeddings are resized; None: as the backbone's weights expect.
        mean: Of the pixels the weights expect, per channel (RGB), in units of [0, 1]; None: the backbone's own.
        std: The same for the standard deviation.
        few_classes_norm: What the mask transformer has for three classes or fewer, see `MaskTransformerDecoder`.
        arch: Segmenter, or a system to compare it with.
        decoder_norm: What comes before a linear decoder, see `LinearDecoder`.

    Raises:
        ValueError: a value is out of range.
    """

    backbone: str
    patch_size: int | None
    decoder: Decoder | None
    num_classes: int
    img_size: int
    decoder_layers: int = 2
    drop_path: float = 0.1
    dropout: float = 0.0
    decoder_drop_path: float = 0.0
    decoder_dropout: float = 0.0
    layer_norm_eps: float | None = None
    position_mode: PositionMode | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    few_classes_norm: Literal["scale", "layer"] = "scale"
    arch: Arch = "segmenter"
    decoder_norm: Literal["none", "batch"] = "none"

    def __post_init__(self) -> None:
        self._check_parts()
        for name, least in (("patch_size", 1), ("num_classes", 2), ("img_size", 1), ("decoder_layers", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least {least}")
        self._check_what_weights_expect()
        for name in ("drop_path", "dropout", "decoder_drop_path", "decoder_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a rate in [0, 1)")

    def _check_parts(self) -> None:
        if self.arch not in _ARCHS:
            raise ValueError(f"arch {self.arch!r} is unknown; use {', '.join(_ARCHS)}")
        decoders = _DECODERS.get(self.arch, (None,))
        if self.decoder not in decoders:
            known = " or ".join(map(repr, decoders))
            raise ValueError(f"decoder {self.decoder!r} is unknown to arch {self.arch!r}; use {known}")
        if (self.patch_size is None) == (self.arch in _DECODERS):
            raise ValueError(f"patch_size {self.patch_size} does not go with arch {self.arch!r}")
        if self.decoder_norm not in ("none", "batch") or (self.decoder_norm == "batch" and self.decoder != "linear"):
            raise ValueError(f"decoder_norm {self.decoder_norm!r} must be 'none', or 'batch' with decoder 'linear'")

    def _check_what_weights_expect(self) -> None:
        if self.position_mode not in (None, *POSITION_MODES):
            raise ValueError(f"position_mode {self.position_mode!r} is unknown; use {', '.join(POSITION_MODES)}")
        if self.few_classes_norm not in ("scale", "layer"):
            raise ValueError(f"few_classes_norm {self.few_classes_norm!r} is unknown; use 'scale' or 'layer'")
        if self.layer_norm_eps is not None and not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps is {self.layer_norm_eps}; use a number in (0, 1)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise ValueError(f"{name} is {values}; use three numbers, a standard deviation above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` of it gives an equal configuration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read back what `to_dict` wrote.

        Raises:
            ValueError: a field is unknown, missing or out of range.
        """
        unknown = sorted(data.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown model settings {', '.join(unknown)}; the file comes from another version")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"incomplete model settings: {error}") from error


def build_segmenter(config: ModelConfig, pretrained: bool | str = False) -> SegmentationModel:
    """Build a model in training mode.

    Args:
        config: The architecture.
        pretrained: Encoder weights: True fetches timm's, a string is a local file (see `load_encoder_weights`), False
            leaves them random. The decoder is always random.

    Raises:
        ValueError: the backbone is unknown, or its weights are missing or do not fit.
    """
    return _build_on_vit(config, pretrained) if config.arch in _DECODERS else _build_on_maps(config, pretrained)


def _build_on_vit(config: ModelConfig, pretrained: bool | str) -> Segmenter:
    assert config.patch_size is not None
    encoder = Encoder(
        config.backbone,
        patch_size=config.patch_size,
        img_size=config.img_size,
        drop_path_rate=config.drop_path,
        dropout=config.dropout,
        layer_norm_eps=config.layer_norm_eps,
        position_mode=config.position_mode,
        mean=config.mean,
        std=config.std,
    )
    if isinstance(pretrained, str):
        load_encoder_weights(encoder, pretrained)
    elif pretrained:
        encoder.load_backbone(pretrained_state(config.backbone))
    return Segmenter(encoder, _build_decoder(config, encoder))


def _build_on_maps(config: ModelConfig, pretrained: bool | str) -> SegmentationModel:
    # Models on plain ViTs, which travel into the registry, can do without the library behind this.
    from segfleet_models.convolutional import ConvolutionalArch, ConvolutionalSegmenter, pretrained_features

    model = ConvolutionalSegmenter(
        cast(ConvolutionalArch, config.arch),
        config.backbone,
        config.num_classes,
        img_size=config.img_size,
        drop_path=config.drop_path,
        decoder_dropout=config.decoder_dropout,
        mean=config.mean,
        std=config.std,
    )
    if isinstance(pretrained, str):
        load_encoder_weights(model, pretrained)
    elif pretrained:
        model.load_backbone(pretrained_features(config.backbone))
    return model


def _build_decoder(config: ModelConfig, encoder: Encoder) -> nn.Module:
    if config.arch == "setr":
        kind = cast(SetrDecoder, config.decoder)
        return build_setr_decoder(kind, encoder.embed_dim, config.num_classes, encoder.depth, config.decoder_dropout)
    if config.decoder == "linear":
        return LinearDecoder(encoder.embed_dim, config.num_classes, config.decoder_dropout, config.decoder_norm)
    return MaskTransformerDecoder(
        encoder.embed_dim,
        config.num_classes,
        num_layers=config.decoder_layers,
        drop_path_rate=config.decoder_drop_path,
        dropout=config.decoder_dropout,
        few_classes_norm=config.few_classes_norm,
    )
