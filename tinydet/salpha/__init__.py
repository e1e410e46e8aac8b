"""S-alpha: fusion factors from the annotations of a dataset (Algorithm 1 of the paper)."""
