"""Composites: rendered people and vehicles in real aerial photos and in drawn streets; `tinydet data compose`."""
