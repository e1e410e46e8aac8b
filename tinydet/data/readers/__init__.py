"""Readers of published annotation formats, one module per format. `read` returns a `CocoBuilder`."""
