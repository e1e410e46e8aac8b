"""Adopt detectors of other frameworks: graft tinydet's input, decoding and outputs around their graphs.

`original` reads the foreign file, `formats` recognizes how it must be fed and decoded, `graft` builds the new graph,
`reference` runs the original as its own framework does, and `adopting` puts the steps together.
"""
