"""Which anchors learn which objects."""
