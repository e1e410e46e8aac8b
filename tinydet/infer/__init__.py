"""The `tinydet infer` command: many scenes, videos, outputs and reports. No torch."""
