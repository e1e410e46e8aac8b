from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinydet.runtime.scenes.folders import distinct, files_in, files_matching


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("in/a.png", "in/deep/b.png", "in/deep/er/c.tif", "out/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return Path("in")


def names(paths: list[Path]) -> list[str]:
    return [path.as_posix() for path in paths]


def test_linked_folders_are_followed_and_no_file_is_listed_twice(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ["in/a.png", "in/deep/b.png", "in/deep/er/c.tif", "in/zz/d.png"]
    for link, target in (("in/zz", "../out"), ("in/up", ".."), ("in/deep/self", "."), ("in/0", "deep")):
        os.symlink(target, link)
    assert names(files_in(folder)) == expected
    assert not caplog.records  # nothing was left out
    os.symlink("a.png", "in/0.png")
    os.link("in/a.png", "in/z.png")
    assert names(files_in(folder)) == expected
    assert "in: left out 2 links to files that are read under another name" in caplog.text


def test_hidden_files_and_those_of_systems_are_ignored_silently(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("._a.png", ".DS_Store", ".trash/x.png", "@eaDir/a.png", "deep/Thumbs.db", "__MACOSX/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert names(files_in(folder)) == ["in/a.png", "in/deep/b.png", "in/deep/er/c.tif"]
    assert not caplog.records
    assert names(files_in(folder / ".trash")) == ["in/.trash/x.png"]  # named by the user


def test_what_cannot_be_listed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    os.symlink("gone.png", "in/dangling.png")
    os.symlink("loop", "in/loop")
    scandir = os.scandir

    def forbidden(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    assert names(files_in(folder)) == ["in/a.png"]
    assert [record.getMessage() for record in caplog.records] == [
        "in/dangling.png: this link has no target and was left out",
        "in/loop: this link has no target and was left out",
        "in/deep: this folder cannot be listed and was left out (Permission denied)",
    ]
    with pytest.raises(PermissionError):
        files_in(folder / "deep")


@pytest.mark.parametrize(
    "pattern",
    ["in/*", "in/*.png", "in/**/*.png", "**/*.png", "*/deep/**", "in/**/er/*", "in/[ab].p?g", "**/d*/**/*", "in/**"],
)
def test_patterns_match_what_glob_matches(folder: Path, pattern: str) -> None:
    expected = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    assert sorted(map(str, files_matching(pattern))) == expected
    absolute = os.path.join(os.getcwd(), pattern)
    assert sorted(map(str, files_matching(absolute))) == [os.path.join(os.getcwd(), path) for path in expected]


def test_links_to_parent_folders_do_not_multiply_the_matches(folder: Path) -> None:
    for n in range(3):  # `glob` would follow them 40 levels deep: 3^40 folders
        os.symlink("..", f"in/deep/up{n}")
    assert names(files_matching("in/**/*.png")) == ["in/a.png", "in/deep/b.png"]


def test_a_folder_with_brackets_in_its_name_can_begin_a_pattern(folder: Path) -> None:
    folder.rename("in[1]")
    assert names(files_matching("in[1]/*.png")) == ["in[1]/a.png"]
    assert names(files_matching("in[1]/**/*.tif")) == ["in[1]/deep/er/c.tif"]


def test_a_file_that_has_vanished_is_kept_so_that_opening_it_reports_it(folder: Path) -> None:
    assert distinct([Path("in/a.png"), Path("gone.png"), Path("in/../in/a.png")]) == [
        Path("in/a.png"),
        Path("gone.png"),
    ]
