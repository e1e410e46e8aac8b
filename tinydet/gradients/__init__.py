"""Makes `python -m tinydet.gradients` work; the command is in `tinydet.study.gradients`."""
