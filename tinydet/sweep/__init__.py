"""`python -m tinydet.sweep` runs `tinydet.study.sweep`."""
