"""Untrusted rasters open no other files of this machine, and contact no servers."""

from __future__ import annotations

import html
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.runtime.scenes import open_scene, read_image
from tinydet.runtime.scenes.georeference import georeference_of
from tinydet.runtime.scenes.raster_access import VARIABLE

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

INSIDE, SECRET = 5, 77  # the pixels of the raster that may be read, and of the one that must not


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `inside.tif` and `deep/inside.tif`; beside it is `../secret.tif`."""
    (tmp_path / "given" / "deep").mkdir(parents=True)
    write(tmp_path / "secret.tif", SECRET)
    write(tmp_path / "given" / "inside.tif", INSIDE)
    write(tmp_path / "given" / "deep" / "inside.tif", INSIDE)
    return tmp_path / "given"


@pytest.fixture
def server() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server, and the requests that it received."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    listener.close()


def write(path: Path, value: int, side: int = 64, **options: Any) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": side, "width": side}
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(np.full((side, side), value, np.uint8), 1)
    return path


def virtual(source: object, relative: int = 1, more: str = "", band: str = "") -> str:
    return (
        f'<VRTDataset rasterXSize="64" rasterYSize="64">{more}<VRTRasterBand dataType="Byte" band="1">{band}'
        f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def overviews(where: object) -> str:
    return f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{html.escape(str(where))}</MDI></Metadata>'


def refused(path: Path, match: str = "") -> None:
    """Check that a file is refused with the way to allow it, and that no other function opens it as a raster."""
    with pytest.raises(ValueError, match=rf"{path.name}.*{match}.*set {VARIABLE}=1") as error:
        open_scene(path)
    assert "\n" not in str(error.value)
    assert georeference_of(path) is None


@pytest.mark.parametrize("source", ["inside.tif", "deep/inside.tif", "deep/../inside.tif"])
def test_a_vrt_may_refer_to_rasters_below_its_folder(folder: Path, source: str) -> None:
    (folder / "a.vrt").write_text(virtual(source))
    (folder / "b.VRT").write_text(virtual(folder / source, relative=0))
    (folder / "c.vrt").write_text(virtual("a.vrt"))
    for name in ("a.vrt", "b.VRT", "c.vrt"):
        assert (read_image(folder / name) == INSIDE).all()


def test_harmless_text_in_a_vrt_is_no_reference(folder: Path) -> None:
    place = '<SRS dataAxisToSRSAxisMapping="2,1">EPSG:4326</SRS><GeoTransform>27,1e-5,0,60,0,-1e-5</GeoTransform>'
    note = '<Metadata><MDI key="TIFFTAG_COPYRIGHT">see https://example.org/../terms</MDI></Metadata>'
    (folder / "a.vrt").write_text(virtual("inside.tif", more=place + note))
    assert (read_image(folder / "a.vrt") == INSIDE).all()
    assert georeference_of(folder / "a.vrt") is not None


def test_a_vrt_in_a_linked_place_refers_to_its_own_folder(folder: Path) -> None:
    (folder / "a.vrt").write_text(virtual("inside.tif"))
    (folder.parent / "linked.vrt").symlink_to(folder / "a.vrt")
    (folder.parent / "linked.tif").symlink_to(folder / "inside.tif")
    assert (read_image(folder.parent / "linked.vrt") == INSIDE).all()
    assert (read_image(folder.parent / "linked.tif") == INSIDE).all()


@pytest.mark.parametrize("name", ["scene.tif", "scene.png", "scene"])
@pytest.mark.parametrize("start", ["", "\ufeff<?xml version='1.0'?>\n<!-- a scene -->\n", "\n \n"])
def test_a_vrt_with_another_suffix_is_refused(folder: Path, name: str, start: str) -> None:
    (folder / name).write_text(start + virtual("inside.tif"), "utf-8")
    refused(folder / name, "a VRT")


def test_a_vrt_that_refers_elsewhere_is_refused_unless_it_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, path = folder.parent / "secret.tif", folder / "a.vrt"
    (folder / "link.tif").symlink_to(secret)
    (folder / "up.vrt").write_text(virtual("../secret.tif"))
    warped = (
        '<VRTDataset rasterXSize="64" rasterYSize="64" subClass="VRTWarpedDataset"><VRTRasterBand dataType="Byte" '
        'band="1" subClass="VRTWarpedRasterBand"/><GDALWarpOptions><SourceDataset relativeToVRT="0">'
        f"{secret}</SourceDataset></GDALWarpOptions></VRTDataset>"
    )
    texts = {
        "relative": virtual("../secret.tif"),
        "absolute": virtual(secret, relative=0),
        "linked": virtual("link.tif"),
        "nested": virtual("up.vrt"),
        "inline": virtual(html.escape(virtual(secret, relative=0)), relative=0),
        "directory of a TIFF": virtual(f"GTIFF_DIR:1:{secret}", relative=0),
        "connection": virtual(f"vrt://{secret}", relative=0),
        "archive": virtual(f"/vsizip/{folder.parent}/a.zip/secret.tif", relative=0),
        "overviews": virtual("inside.tif", more=overviews(secret)),
        "mask": virtual("inside.tif", more=f"<MaskBand><VRTRasterBand>{virtual(secret, 0)}</VRTRasterBand></MaskBand>"),
        "warped": warped,
        "entity": f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{secret}">]>' + virtual("&b;"),
    }
    for kind, text in texts.items():
        path.write_text(text)
        if kind == "entity":  # not recognized as a VRT, so GDAL is not asked either
            with pytest.raises(ValueError, match="damaged, or not an image"):
                open_scene(path)
        else:
            refused(path)
    monkeypatch.setenv(VARIABLE, "1")
    for kind in ("relative", "absolute", "linked", "nested"):
        path.write_text(texts[kind])
        assert (read_image(path) == SECRET).all()
    monkeypatch.setenv(VARIABLE, "0")
    refused(path)


def test_a_missing_part_of_a_vrt_is_named(folder: Path) -> None:
    (folder / "a.vrt").write_text(virtual("gone.tif"))
    with pytest.raises(ValueError, match=r"a\.vrt: it refers to gone\.tif, which does not exist"):
        open_scene(folder / "a.vrt")
    (folder / "a.vrt").write_text(virtual("inside.tif")[:-30])
    with pytest.raises(ValueError, match=r"a\.vrt: damaged VRT"):
        open_scene(folder / "a.vrt")


def test_no_code_of_a_vrt_is_run(folder: Path) -> None:
    code = (
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode>open('{folder}/ran', 'w')</PixelFunctionCode>"
    )
    text = virtual("inside.tif", band=code).replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"')
    (folder / "a.vrt").write_text(text)
    refused(folder / "a.vrt", "Python code")
    assert not (folder / "ran").exists()


def test_overviews_in_another_file_are_refused(folder: Path) -> None:
    path, secret = folder / "a.tif", folder.parent / "secret.tif"
    write(path, INSIDE)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(secret))
    refused(path, "overviews")
    for name, driver in (("b.tif", "GTiff"), ("b.img", "HFA")):
        write(folder / name, INSIDE, driver=driver)
        (folder / f"{name}.aux.xml").write_text(f"<PAMDataset>{overviews(secret)}</PAMDataset>")
        refused(folder / name, "overviews")
    write(folder / "c.tif", INSIDE)
    for suffix in (".ovr", ".msk"):
        (folder / f"c.tif{suffix}").write_text(virtual(secret, relative=0))
        with pytest.raises(ValueError, match=rf"c\.tif{suffix}: not a TIFF, .*{VARIABLE}=1"):
            open_scene(folder / "c.tif")
        (folder / f"c.tif{suffix}").unlink()


def test_no_server_is_called(folder: Path, server: tuple[str, list[bytes]]) -> None:
    address, asked = server
    service = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow>'
        "<UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>0</LowerRightY>"
        "<SizeX>64</SizeX><SizeY>64</SizeY></DataWindow></GDAL_WMS>"
    )
    (folder / "service.xml").write_text(service)
    refused(folder / "service.xml", "servers")
    for source in (f"/vsicurl/{address}/a.tif", f"{address}/a.tif", html.escape(service)):
        (folder / "a.vrt").write_text(virtual(source, relative=0))
        refused(folder / "a.vrt")
    (folder / "a.vrt").write_text(virtual("service.xml"))
    with pytest.raises(ValueError, match=r"a\.vrt: cannot be read .*check service\.xml"):
        open_scene(folder / "a.vrt")
    for n, source in enumerate((f"/vsicurl/{address}/a.tif", service)):
        write(folder / f"{n}.tif", INSIDE)
        (folder / f"{n}.tif.aux.xml").write_text(f"<PAMDataset>{overviews(source)}</PAMDataset>")
        refused(folder / f"{n}.tif")
    assert not asked


@pytest.mark.parametrize("head", [b"\x89HDF\r\n\x1a\n", b"CDF\1", b"<MRF_META><Raster>", b"<GDAL_WMTS>"])
def test_formats_that_refer_to_other_files_are_refused(folder: Path, head: bytes) -> None:
    (folder / "a.tif").write_bytes(head + bytes(200))
    refused(folder / "a.tif", "may refer to other files")


def test_overviews_masks_and_metadata_next_to_a_raster_are_used(folder: Path) -> None:
    path = write(folder / "a.tif", INSIDE, side=256, nodata=0)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    write(folder / "b.tif", INSIDE, side=256)
    mask = np.full((256, 256), 255, np.uint8)
    mask[:, 128:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(folder / "b.tif", "r+") as file:
        file.write_mask(mask)
    assert {"a.tif.ovr", "b.tif.msk"} <= set(os.listdir(folder))
    assert (read_image(path) == INSIDE).all()
    with open_scene(folder / "b.tif") as scene:
        assert [scene.is_empty(128, 0, 128, 256), scene.is_empty(0, 0, 128, 256)] == [True, False]


def test_a_container_of_several_rasters_says_how_to_choose_one(folder: Path) -> None:
    profile = {"driver": "GPKG", "count": 3, "dtype": "uint8", "height": 64, "width": 64, "crs": "EPSG:4326"}
    for name, more in (("one", {}), ("two", {"APPEND_SUBDATASET": "YES"})):
        affine = rasterio.Affine(1e-3, 0, 27, 0, -1e-3, 60)
        with rasterio.open(folder / "a.gpkg", "w", **profile, transform=affine, RASTER_TABLE=name, **more) as file:
            file.write(np.full((3, 64, 64), 9, np.uint8))
    with pytest.raises(ValueError, match=r"a\.gpkg holds 2 images .*gdal_translate GPKG:.*a\.gpkg:one other\.tif"):
        open_scene(folder / "a.gpkg")
