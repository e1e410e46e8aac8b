from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tinydet._internal.extras import check_opencv, needs_extra


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ModuleNotFoundError) as caught, needs_extra("geo"):
        import a_package_that_nobody_has.inside  # noqa: F401
    assert str(caught.value) == "'a_package_that_nobody_has' is not installed. Run: pip install 'tinydet[geo]'"
    assert caught.value.name == "a_package_that_nobody_has"


def test_without_an_extra_the_core_installation_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"Run: pip install tinydet$"), needs_extra(""):
        import a_package_that_nobody_has  # noqa: F401


def test_a_package_that_cannot_be_loaded_is_not_reported_as_missing() -> None:
    with pytest.raises(ImportError, match=r"cannot be loaded: libnvinfer\.so\.10: cannot open") as caught:  # noqa: SIM117
        with needs_extra("tensorrt"):
            raise ImportError("libnvinfer.so.10: cannot open shared object file", name="tensorrt")
    assert not isinstance(caught.value, ModuleNotFoundError)


def test_a_missing_module_of_tinydet_is_not_blamed_on_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'tinydet\.absent'$"), needs_extra("train"):
        import tinydet.absent  # noqa: F401
    with (
        pytest.raises(ImportError, match=r"^cannot import name 'absent' from 'tinydet\._internal\.extras'"),
        needs_extra("train"),
    ):
        from tinydet._internal.extras import absent  # noqa: F401


@pytest.mark.parametrize("error", [ValueError, AttributeError, OSError])
def test_other_errors_pass_through(error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^as it was$"), needs_extra("export"):
        raise error("as it was")


def test_an_incomplete_opencv_is_reported_with_the_command_that_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two installed packages was removed, which leaves a folder without the module."""
    check_opencv()
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    check_opencv()
    (tmp_path / "cv2" / "data").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(
        ImportError, match=r"OpenCV is incomplete.*pip uninstall -y .*; pip install 'opencv-python-headless<5'"
    ):
        check_opencv()


def test_opencv_without_a_system_library_says_how_to_install_the_headless_build() -> None:
    with pytest.raises(ImportError, match=r"OpenCV cannot be loaded \(libGL.so.1: cannot open") as caught:  # noqa: SIM117
        with needs_extra(""):
            raise ImportError("libGL.so.1: cannot open shared object file", name="cv2", path="cv2/cv2.abi3.so")
    assert "pip install 'opencv-python-headless<5'" in str(caught.value)
    assert "apt-get install libgl1" in str(caught.value)
