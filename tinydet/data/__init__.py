"""Annotated images: COCO-format reading and the embedded synthetic data. numpy and opencv only, no torch."""
