"""Detectors in torch: backbones, pyramids with a fusion factor, heads, losses, checkpoints."""
