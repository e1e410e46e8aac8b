"""Tools for studies: sweeps over alpha, gradients, seam tests and dataset statistics."""
