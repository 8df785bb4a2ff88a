"""Segmenter in plain PyTorch and timm: encoder, decoders, losses, metrics, inference."""
