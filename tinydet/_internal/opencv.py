"""Import OpenCV before any module that uses it, so that a failure says how to repair the installation."""

from tinydet._internal.extras import check_opencv, needs_extra

check_opencv()
with needs_extra(""):
    import cv2  # noqa: F401
