"""Building blocks for all packages: atomic files, commands and their arguments, optional extras, deferred Ctrl-C."""
