"""tinydet: objects of a few pixels in very large pictures. Train with a fusion factor, deploy without one."""

__version__ = "0.1.0"
