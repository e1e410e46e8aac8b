"""The command `tinydet infer`: scan many scenes and videos, write and draw detections, resume. Needs no torch."""
