"""For tools that ask for a setup.py. All metadata is in pyproject.toml."""

from setuptools import setup

setup()
