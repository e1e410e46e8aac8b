"""Images, rasters and videos as scenes that are read window by window."""
