"""Files of a dataset folder: every name is listed, hidden files are not, and cycles of links end."""

from __future__ import annotations

from pathlib import Path

from tinydet.data.image_files import list_files, list_images


def test_every_name_counts_except_hidden_ones(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("b.PNG", "._b.png", ".hidden/c.png", "__MACOSX/d.png", "deep/e.tif", "f.txt", "g.avif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "hard.png").hardlink_to(root / "b.PNG")
    (root / "soft.png").symlink_to("b.PNG")
    (root / "broken.png").symlink_to("nowhere")
    (root / "folder.png").mkdir()
    (root / "up").symlink_to("..")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "s.png").touch()
    (root / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(root)
    names = [path.as_posix() for path in list_images(root)]
    assert names == sorted(
        ["b.PNG", "broken.png", "deep/e.tif", "g.avif", "hard.png", "linked/s.png", "soft.png"], key=Path
    )
    assert list_files(root, (".txt",)) == [Path("f.txt")]
