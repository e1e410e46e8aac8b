"""Makes `python -m tinydet.sweep` work; the command is in `tinydet.study.sweep`."""
