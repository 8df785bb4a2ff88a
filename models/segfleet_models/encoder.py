"""The encoder: a plain Vision Transformer from timm, cut down to what segmentation needs.

This module is the only door to timm's ViTs. Shapes: B batch, C channels, H W pixels, h w patches, N = h * w tokens.

Dosovitskiy et al. 2020 (ViT), Touvron et al. 2020 (DeiT), Oquab et al. 2023 (DINOv2), Zhai et al. 2023 (SigLIP), Fang
et al. 2023 (EVA-02), Simeoni et al. 2025 (DINOv3), Beyer et al. 2022 (FlexiViT: how a patch embedding is resampled).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import resample_patch_embed
from timm.models import is_model_in_modules
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segfleet_models.attention import LeanAttention
from segfleet_models.positions import PositionMode, resize_positions, source_mode

# Where timm keeps the plain ViTs, of one resolution throughout: with learned absolute positions alone, and with rotary
# ones (DINOv3, EVA-02), which timm makes for any grid itself.
_PLAIN_VIT_MODULES = ("vision_transformer", "deit", "eva")
_BLOCK = re.compile(r"\bblocks\.(\d+)\.")
# Parts of a classifier or of its pre-training that a weights file may hold and an encoder has no use for.
_UNUSED_KEYS = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "mask_token")


class Encoder(nn.Module):
    """A plain ViT that turns pictures of any whole number of patches into normalised patch tokens.

    Position embeddings are stored for the grid of `img_size`, so that training crops need no resizing; any other grid
    gets them resized in the forward pass, as the reference code does.

    Args:
        backbone: timm name of a plain ViT or DeiT, with or without a weights tag; the tag decides `mean` and `std`.
        patch_size: Side of a patch in pixels, may differ from the backbone's own.
        img_size: Side of the training crop in pixels, rounded up to whole patches.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); rises linearly from 0 in the first.
        dropout: Rate in attention weights, projections, MLPs and after the position embedding, in [0, 1).
        layer_norm_eps: Replaces the backbone's own epsilon (1e-6); the reference's published checkpoints need 1e-5.
        position_mode: How position embeddings are resized; None: as the backbone's weights expect (`source_mode`).
        mean: Replaces the backbone's own, per channel (RGB), in units of [0, 1].
        std: The same for the standard deviation.

    Attributes:
        vit: The timm model; its parameter names are those of weights files.
        embed_dim: C.
        patch_size: Side of a patch in pixels.
        num_prefix_tokens: Class, distillation and register tokens; they never leave the encoder.
        position_mode: How position embeddings are resized.
        depth: Number of blocks.
        recomputes: Whether a block's activations are made again in the backward pass instead of being kept.
        mean: Per channel (RGB), in units of [0, 1], as the backbone's weights expect.
        std: Same units.

    Raises:
        ValueError: timm knows no such plain ViT.
    """

    def __init__(
        self,
        backbone: str,
        *,
        patch_size: int,
        img_size: int,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        layer_norm_eps: float | None = None,
        position_mode: PositionMode | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        self.vit: Any = _create_vit(
            backbone,
            patch_size=patch_size,
            # timm would round down; the forward pass pads a crop up to whole patches.
            img_size=math.ceil(img_size / patch_size) * patch_size,
            drop_path_rate=drop_path_rate,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
            attn_drop_rate=dropout,
        )
        remove_idle_dropout(self.vit)
        if layer_norm_eps is not None:
            _set_layer_norm_eps(self.vit, layer_norm_eps)
        self.embed_dim: int = self.vit.embed_dim
        self.patch_size = patch_size
        self.num_prefix_tokens: int = self.vit.num_prefix_tokens
        self.depth = len(self.vit.blocks)
        self.recomputes = False
        self.position_mode: PositionMode = position_mode or source_mode(backbone)
        self.mean = mean or _channels(self.vit.pretrained_cfg["mean"])
        self.std = std or _channels(self.vit.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised pictures.

        Args:
            images: (B, 3, H, W), H and W multiples of `patch_size`.

        Returns:
            Patch tokens after the final norm, (B, N, C), row-major.

        Raises:
            ValueError: H or W is no multiple of the patch size.
        """
        return self.levels(images, ())[0]

    def levels(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Encode normalised pictures, and look in at lower blocks.

        Args:
            images: (B, 3, H, W), H and W multiples of `patch_size`.
            layers: Blocks, from 1, after which to look, before any norm.

        Returns:
            Patch tokens (B, N, C) after each of these blocks, in order, and at last those that `forward` returns.

        Raises:
            ValueError: H or W is no multiple of the patch size.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"picture of {height}x{width} pixels is no multiple of the patch size {self.patch_size}")
        tokens, rotations = self._embed(images)
        found = []
        for number, block in enumerate(self.vit.blocks, 1):
            tokens = self._run(block, tokens, {} if rotations is None else {"rope": rotations[number - 1]})
            if number in layers:
                found.append(tokens)
        return [level[:, self.num_prefix_tokens :] for level in (*found, self.vit.norm(tokens))]

    def layer_of(self, name: str) -> int:
        """How deep a parameter of this name lies: 0 the embeddings, then the blocks from 1, then the final norm."""
        block = _BLOCK.search(name)
        if block is not None:
            return int(block[1]) + 1
        return self.depth + 1 if name.startswith("vit.norm.") else 0

    def _run(self, block: nn.Module, tokens: Tensor, extra: dict[str, Tensor]) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            again: Tensor = checkpoint(partial(block, **extra), tokens, use_reentrant=False)
            return again
        result: Tensor = block(tokens, **extra)
        return result

    def _embed(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor] | None]:
        """The first block's input, and each block's rotations if the backbone has rotary positions."""
        if self.is_rotary:
            tokens, rotations = self.vit._pos_embed(self.vit.patch_embed(images))
            each = rotations if getattr(self.vit, "rope_mixed", False) else [rotations] * self.depth
            return self.vit.norm_pre(tokens), each
        return self._embed_absolute(images), None

    def _embed_absolute(self, images: Tensor) -> Tensor:
        patches = self.vit.patch_embed.proj(images)  # B C h w
        grid_size = patches.shape[-2:]
        patches = self.vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))  # B N C
        tokens = (getattr(self.vit, name, None) for name in ("cls_token", "dist_token", "reg_token"))
        prefix = [token.expand(images.shape[0], -1, -1) for token in tokens if token is not None]
        positions = resize_positions(
            self.vit.pos_embed,
            self.vit.patch_embed.grid_size,
            grid_size,
            self._num_prefix_positions,
            self.position_mode,
        )
        if self._num_prefix_positions:
            joint = torch.cat([*prefix, patches], dim=1) + positions
        else:
            joint = torch.cat([*prefix, patches + positions], dim=1)
        embedded: Tensor = self.vit.norm_pre(self.vit.pos_drop(joint))
        return embedded

    @property
    def is_rotary(self) -> bool:
        """Whether attention itself knows where tokens lie."""
        return getattr(self.vit, "rope", None) is not None

    @property
    def _num_prefix_positions(self) -> int:
        return 0 if self.vit.no_embed_class else self.num_prefix_tokens

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over a timm ViT's weights, whatever their precision, picture size and patch size.

        Position embeddings are resized in `position_mode` to the stored grid, the patch embedding is resampled to the
        patch size, the classifier's own parts are left out.

        Args:
            state: timm parameter names to tensors.

        Raises:
            ValueError: names or shapes do not fit; lists what is missing, unexpected or of another shape.
        """
        if not any(key.startswith("norm.") for key in state):
            # A classifier that averages over the patches has its final norm behind the average, under another name.
            state = {re.sub(r"^fc_norm\.", "norm.", key): tensor for key, tensor in state.items()}
        state = {key: tensor.float() for key, tensor in state.items() if not key.startswith(_UNUSED_KEYS)}
        kernel = state.get("patch_embed.proj.weight")
        if kernel is not None and kernel.ndim == 4:
            state["patch_embed.proj.weight"] = resample_patch_embed(kernel, [self.patch_size, self.patch_size])
        positions = state.get("pos_embed")
        if positions is not None and positions.ndim == 3:
            state["pos_embed"] = self._fit_positions(positions)
        load_exactly(self.vit, state)

    def _fit_positions(self, positions: Tensor) -> Tensor:
        num_positions = positions.shape[1] - self._num_prefix_positions
        side = math.isqrt(max(num_positions, 0))
        if side == 0 or side * side != num_positions:
            raise ValueError(
                f"pos_embed holds {positions.shape[1]} positions; without {self._num_prefix_positions} for the prefix "
                "tokens that is no square grid; the file belongs to another kind of backbone"
            )
        grid_size: tuple[int, int] = self.vit.patch_embed.grid_size
        return resize_positions(positions, (side, side), grid_size, self._num_prefix_positions, self.position_mode)


def pretrained_state(backbone: str) -> dict[str, Tensor]:
    """The weights timm publishes for a backbone, fetched from its hub or the local cache.

    Raises:
        ValueError: timm has no weights under this name, or they cannot be fetched.
    """
    try:
        state: dict[str, Tensor] = _create_vit(backbone, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no weights for backbone {backbone!r}: {error}; give a local weights file or train from random weights"
        ) from error
    return state


def weights_licence(backbone: str) -> str | None:
    """Licence of the weights that timm publishes for a backbone, as timm says it; None: it does not say."""
    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    return None if config is None or not config.license else str(config.license)


def transformer_blocks(dim: int, depth: int, *, drop_path_rate: float, dropout: float) -> nn.Sequential:
    """Pre-norm ViT blocks as the reference's decoder has them: heads of 64, MLP of 4 * dim, LayerNorm eps 1e-5.

    Raises:
        ValueError: `dim` cannot be split into heads.
    """
    num_heads = max(1, dim // 64)
    if dim % num_heads:
        raise ValueError(f"{dim} channels cannot be split into {num_heads} heads; use a backbone of a multiple of 64")
    blocks = nn.Sequential(
        *(
            Block(
                dim,
                num_heads,
                qkv_bias=True,
                proj_drop=dropout,
                attn_drop=dropout,
                drop_path=rate,
                norm_layer=nn.LayerNorm,
                attn_layer=LeanAttention,
            )
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
    )
    remove_idle_dropout(blocks)
    return blocks


def remove_idle_dropout(module: nn.Module) -> None:
    """Replace Dropout of rate 0 by nothing: in training it would still draw a mask, 6 % of a small model's step."""
    for parent in module.modules():
        for name, child in parent.named_children():
            # timm's fused attention reads the rate off `attn_drop` and never calls it.
            if isinstance(child, nn.Dropout) and child.p == 0 and name != "attn_drop":
                setattr(parent, name, nn.Identity())


def load_exactly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a module that has the same parameters.

    Raises:
        ValueError: lists the names that are missing or unexpected and the shapes that differ.
    """
    wanted = module.state_dict()
    findings = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} is {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    problems = [f"{len(found)} {what} ({_shorten(found)})" for what, found in findings.items() if found]
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(problems))
    module.load_state_dict(state)


def _create_vit(backbone: str, **options: object) -> Any:
    if not timm.is_model(backbone) or not is_model_in_modules(backbone, _PLAIN_VIT_MODULES):
        names = [name for module in _PLAIN_VIT_MODULES for name in timm.list_models(module=module)]
        near = difflib.get_close_matches(backbone.split(".")[0], names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "for instance vit_small_patch16_384"
        raise ValueError(f"{backbone!r} is not a plain ViT known to timm; {hint}")
    # No pooling: pooling heads would be parameters without gradients. Only distilled DeiT knows no other than its own.
    pooling = {} if "distilled" in backbone else {"global_pool": ""}
    if is_model_in_modules(backbone, ("eva",)):
        options["dynamic_img_size"] = True
    vit = timm.create_model(backbone, num_classes=0, **pooling, **options)
    if vit.pos_embed is None and getattr(vit, "rope", None) is None:
        raise ValueError(f"{backbone!r} has neither learned nor rotary positions; use another plain ViT")
    return vit


def _set_layer_norm_eps(module: nn.Module, eps: float) -> None:
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            child.eps = eps


def _channels(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _shorten(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
