"""The section of a spec that says which network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from segfleet.spec.sections import LocalPath, Section


def _pretrained_kind(value: Any) -> str:
    return "(file)" if isinstance(value, str) else "(flag)"


Pretrained = Annotated[
    Annotated[bool, Tag("(flag)")] | Annotated[LocalPath, Tag("(file)")], Discriminator(_pretrained_kind)
]

Arch = Literal["segmenter", "setr", "deeplabv3plus", "fcn", "unet", "upernet"]
# The decoders each architecture has; None: only its own.
DECODERS: dict[str, tuple[str | None, ...]] = {
    "segmenter": ("mask", "linear"),
    "setr": ("naive", "pup", "mla"),
    "deeplabv3plus": (None,),
    "fcn": (None,),
    "unet": (None,),
    "upernet": (None,),
}


class ModelSpec(Section):
    """Segmenter (a plain ViT with a linear or mask-transformer decoder), or a system the paper compares it with."""

    variant: str | None = Field(None, description="shorthand such as seg-s-mask/16; the other fields win over it")
    arch: Arch = Field("segmenter", description="segmenter, or a baseline to compare it with")
    backbone: Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)?$", max_length=100)] = Field(
        description="timm name: a plain ViT for segmenter and setr, any other network of feature maps for the rest"
    )
    patch_size: Annotated[int, Field(ge=4, le=64)] | None = Field(
        None, description="side of a patch, pixels; segmenter and setr only"
    )
    decoder: Literal["mask", "linear", "naive", "pup", "mla"] | None = Field(
        None, description="segmenter: mask transformer or one linear layer; setr: naive, pup or mla"
    )
    decoder_layers: Annotated[int, Field(ge=1, le=12)] = Field(2, description="blocks of the mask transformer")
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="stochastic depth of the encoder's last block; rises linearly from 0"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="dropout in the encoder")
    decoder_drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="the same for the decoder")
    decoder_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="dropout in the mask transformer (its default: 0.1, the reference code's; the paper says none), "
        "or before the last layer of other decoders",
    )
    decoder_norm: Literal["none", "batch"] = Field(
        "none", description="before a linear decoder; batch is DINOv3's recipe for frozen encoders"
    )
    pretrained: Pretrained = Field(True, description="true: timm's hub, false: random, or a weights file")

    @model_validator(mode="after")
    def _of_one_architecture(self) -> Self:
        allowed = DECODERS[self.arch]
        if self.decoder not in allowed:
            choices = "leave it out" if allowed == (None,) else f"use {' or '.join(map(str, allowed))}"
            raise ValueError(f"arch {self.arch!r} has no decoder {self.decoder!r}; {choices}")
        if (self.patch_size is None) != (allowed == (None,)):
            advice = "leave it out" if self.patch_size else "give it"
            raise ValueError(f"patch_size is {self.patch_size}, and arch {self.arch!r} says otherwise; {advice}")
        if self.patch_size is None and (self.dropout or self.decoder_drop_path):
            raise ValueError(
                f"dropout and decoder_drop_path are for plain ViTs, not arch {self.arch!r}; leave them out"
            )
        if self.decoder_norm != "none" and self.decoder != "linear":
            raise ValueError(f"decoder_norm {self.decoder_norm!r} is for the linear decoder; leave it out")
        return self


def has_batch_norm(model: Mapping[str, Any]) -> bool:
    """Whether a model of these fields normalises over its batch."""
    return bool(model.get("arch", "segmenter") != "segmenter" or model.get("decoder_norm", "none") == "batch")
