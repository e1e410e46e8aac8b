"""The module of the package tensorrt-rtx-cu13, which is published without a wheel: the names of its bindings."""

from tensorrt_rtx_bindings import *  # noqa: F403
from tensorrt_rtx_bindings import __version__ as __version__
