"""Boxes, non-maximum suppression, anchors and tiles. numpy only."""
