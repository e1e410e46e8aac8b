"""tinydet trains, exports and runs detectors for tiny objects in very large images."""

from tinydet._internal.threads import set_openmp_wait_policy

__version__ = "0.2.0"

set_openmp_wait_policy()  # before any module here imports torch
