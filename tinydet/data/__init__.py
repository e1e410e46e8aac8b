"""Annotated images: COCO datasets, published formats, tools that rewrite datasets, and synthetic scenes. No torch."""
