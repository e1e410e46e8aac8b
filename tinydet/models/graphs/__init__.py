"""Inference graphs of the detectors, made of plain operators."""
