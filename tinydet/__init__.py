"""tinydet: objects of a few pixels in very large pictures. Train with a fusion factor, deploy without one."""

from tinydet._internal.threads import set_openmp_wait_policy

__version__ = "0.1.0"

set_openmp_wait_policy()  # before any module here imports torch
