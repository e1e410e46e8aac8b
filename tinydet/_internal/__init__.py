"""Building blocks that every package uses: atomic files, the command wrapper, optional extras."""
