"""`python -m tinydet.gradients` runs `tinydet.study.gradients`."""
