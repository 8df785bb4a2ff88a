"""The two decoders of Segmenter (Strudel et al. 2021): patch tokens to one score per patch and class.

Shapes: B batch, N = h * w patch tokens, C channels, K classes. Parameter names equal those of the reference's
checkpoints.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfleet_models.encoder import transformer_blocks

# Up to this many classes a LayerNorm over classes hides the confidence: with two classes it returns only the sign.
_FEW_CLASSES = 3
# Start of the learned scale, near the sqrt(K - 1) a LayerNorm over many classes allows.
_INITIAL_SCALE = 10.0


class LinearDecoder(nn.Module):
    """One linear layer on each patch token.

    Args:
        embed_dim: C of the encoder.
        num_classes: K.
        dropout: Of whole channels before the layer, in [0, 1).
        norm: "batch": batch normalisation before that, as in DINOv3's recipe for frozen encoders.
    """

    scale, layers = 1, ()

    def __init__(
        self, embed_dim: int, num_classes: int, dropout: float = 0.0, norm: Literal["none", "batch"] = "none"
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.BatchNorm1d(embed_dim) if norm == "batch" else None
        self.dropout = nn.Dropout1d(dropout) if dropout else None
        self.head = nn.Linear(embed_dim, num_classes)
        self.apply(_init_weights)

    def forward(self, tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Score every patch.

        Args:
            tokens: Encoder output, (B, N, C).
            grid_size: (h, w), in patches.

        Returns:
            Logits, (B, K, h, w).

        Raises:
            ValueError: N differs from h * w.
        """
        # Both take channels second: (B, C, N).
        channels = tokens.transpose(1, 2)
        if self.norm is not None:
            channels = self.norm(channels)
        if self.dropout is not None:
            channels = self.dropout(channels)
        return to_grid(self.head(channels.transpose(1, 2)), grid_size)


class MaskTransformerDecoder(nn.Module):
    """Class embeddings attend to the patches and each other; a patch's score is its cosine with the class.

    The cosines are normalised over the classes by a LayerNorm. With three classes or fewer that norm would leave
    little but the sign of a difference (and kill its gradient), so a learned scale and bias take its place.

    Args:
        embed_dim: C of the encoder, also the decoder's width.
        num_classes: K.
        num_layers: Transformer blocks.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); rises linearly from 0.
        dropout: Rate inside the blocks, in [0, 1).
        few_classes_norm: "scale" as said above; "layer" keeps the LayerNorm, for weights that were trained with it.
    """

    scale, layers = 1, ()

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_layers: int = 2,
        drop_path_rate: float = 0.0,
        dropout: float = 0.1,
        few_classes_norm: Literal["scale", "layer"] = "scale",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.proj_dec = nn.Linear(embed_dim, embed_dim)
        self.cls_emb = nn.Parameter(torch.empty(1, num_classes, embed_dim))
        self.blocks = transformer_blocks(embed_dim, num_layers, drop_path_rate=drop_path_rate, dropout=dropout)
        self.decoder_norm = nn.LayerNorm(embed_dim)
        # Applied from the right, x @ W.
        self.proj_patch = nn.Parameter(torch.empty(embed_dim, embed_dim))
        self.proj_classes = nn.Parameter(torch.empty(embed_dim, embed_dim))
        is_scaled = num_classes <= _FEW_CLASSES and few_classes_norm == "scale"
        self.mask_norm = ScaledCosine(num_classes) if is_scaled else nn.LayerNorm(num_classes)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        nn.init.normal_(self.proj_patch, std=embed_dim**-0.5)
        nn.init.normal_(self.proj_classes, std=embed_dim**-0.5)

    def forward(self, tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Score every patch against every class embedding.

        Args:
            tokens: Encoder output, (B, N, C).
            grid_size: (h, w), in patches.

        Returns:
            Logits, (B, K, h, w).

        Raises:
            ValueError: N differs from h * w.
        """
        num_patches = tokens.shape[1]
        classes = self.cls_emb.expand(tokens.shape[0], -1, -1)
        joint = torch.cat([self.proj_dec(tokens), classes], dim=1)
        joint = self.decoder_norm(self.blocks(joint))
        patches = F.normalize(joint[:, :num_patches] @ self.proj_patch, dim=-1)
        classes = F.normalize(joint[:, num_patches:] @ self.proj_classes, dim=-1)
        return to_grid(self.mask_norm(patches @ classes.transpose(1, 2)), grid_size)


class ScaledCosine(nn.Module):
    """Cosines times a learned scale, plus a learned bias per class: keeps how far two classes are apart."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(_INITIAL_SCALE))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, cosines: Tensor) -> Tensor:
        """(B, N, K) cosines in [-1, 1] to (B, N, K) logits."""
        return cosines * self.weight + self.bias


def to_grid(logits: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Values of tokens (B, N, K) as a map (B, K, h, w), row-major.

    Raises:
        ValueError: N differs from h * w.
    """
    height, width = grid_size
    if logits.shape[1] != height * width:
        raise ValueError(f"{logits.shape[1]} tokens do not fill a grid of {height}x{width} patches")
    # Contiguous: everything downstream is an order of magnitude larger, and would copy into this layout there.
    return logits.transpose(1, 2).reshape(logits.shape[0], -1, height, width).contiguous()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
