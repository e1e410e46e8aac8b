from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tinydet._internal.atomic import atomic_path, claim, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_only_the_finished_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "dets.json"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename is atomic only within a file system
        assert temporary.suffix == path.suffix  # cv2.imwrite and rasterio choose the format by the suffix
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["dets.json"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("older", [None, "older"])
def test_an_error_leaves_the_folder_unchanged(tmp_path: Path, error: type[BaseException], older: str | None) -> None:
    path = tmp_path / "model.pth"
    if older:
        path.write_text(older)
    before = names(tmp_path)
    with pytest.raises(error), atomic_path(path) as temporary:  # noqa: PT012 - the block is what is tested
        temporary.write_text("half of")
        raise error("in the middle")
    assert names(tmp_path) == before
    assert older is None or path.read_text() == older


FULL_DISK = """
import resource, sys
from pathlib import Path
from tinydet._internal.atomic import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # raises EFBIG, in place of ENOSPC
try:
    write_text(Path(sys.argv[1]), "x" * 1_000_000)
except OSError as error:
    print(error.errno, error.strerror, sep="|")
"""


def test_a_full_disk_is_reported_and_the_older_file_survives(tmp_path: Path) -> None:
    path = tmp_path / "scene.json"
    path.write_text("older")
    code, reason = run(FULL_DISK, str(path)).stdout.strip().split("|")
    assert int(code) == errno.EFBIG
    assert reason == f"{path} was not written ({os.strerror(errno.EFBIG)}); the older file is unchanged"
    assert path.read_text() == "older"
    assert names(tmp_path) == ["scene.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tinydet._internal.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_older_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("older")
    assert run(KILLED, str(path)).returncode == -signal.SIGKILL
    assert path.read_text() == "older"


def test_a_reader_never_sees_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, ["start"] * 2000)
    seen: list[int] = []
    writing = True

    def read() -> None:
        while writing:
            seen.append(len(set(json.loads(path.read_text()))))

    def write(first: int) -> None:
        for i in range(first, first + 20):
            write_json(path, [i] * 2000)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(100 * i,)) for i in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    writing = False
    for thread in readers:
        thread.join()
    assert set(seen) == {1}
    assert names(tmp_path) == ["manifest.json"]


def test_the_temporary_file_of_the_next_run_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.replace

    def then_another_begins(self: Path, target: Path) -> Path:
        done = rename(self, target)
        self.write_text("next run")
        return done

    monkeypatch.setattr(Path, "replace", then_another_begins)
    with atomic_path(tmp_path / "a.json", part=True) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.json").read_text() == "whole"
    assert temporary.read_text() == "next run"


HOLDS = """
import sys, time
from pathlib import Path
from tinydet._internal.atomic import atomic_path
with atomic_path(Path(sys.argv[1]), part=True) as temporary:
    temporary.write_text("a partial file")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_part_file_is_overwritten_unless_another_process_is_writing_it(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(OSError, match=r"all\.json was not written: another run is writing it"):  # noqa: SIM117
            with atomic_path(path, part=True):
                pytest.fail("the work began")
        other.kill()
    assert names(tmp_path) == [".all.part.json", ".all.part.json.lock"]
    assert (tmp_path / ".all.part.json").read_text() == "a partial file"
    with atomic_path(path, part=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["all.json"]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "shared.csv", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared.csv").stat().st_mode) == 0o640


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private.json"
    path.write_text("older")
    path.chmod(0o600)
    write_text(path, "newer")
    assert path.read_text() == "newer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    target = tmp_path / "runs" / "7.pth"
    link = tmp_path / "model.pth"
    link.symlink_to(target)  # dangling until the first write
    for text in ("first", "second"):
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert names(tmp_path / "runs") == ["7.pth"]


def test_a_pipe_is_written_directly(tmp_path: Path) -> None:
    """Needed for `--output /dev/stdout` and `--json >(jq .)`: a rename would replace the device by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "through")
    reader.join(timeout=10)
    assert received == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_missing_folder_is_created_and_stays_only_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "a"
    with pytest.raises(ZeroDivisionError), atomic_path(path):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    write_text(path, "whole")
    assert path.read_text() == "whole"


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "empty" / "a"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["empty"]


def test_a_file_in_place_of_a_folder_is_reported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="was not written"), atomic_path(tmp_path / "file" / "a"):
        pytest.fail("the work began")


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"), atomic_path(tmp_path):
        pytest.fail("the work began")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write: /proc")
def test_a_read_only_folder_is_reported_before_the_work() -> None:
    with (
        pytest.raises(OSError, match=r"/proc/self/out\.json was not written"),
        atomic_path(Path("/proc/self/out.json")),
    ):
        pytest.fail("the work began")


def test_an_error_of_another_file_names_both_files(tmp_path: Path) -> None:
    absent = tmp_path / "tile.png"
    with pytest.raises(FileNotFoundError, match=r"sheet\.jpg was not written \(.*tile\.png: No such file"):  # noqa: SIM117
        with atomic_path(tmp_path / "sheet.jpg"):
            absent.read_bytes()


@pytest.mark.parametrize("value", [{"name": "Größe α", "n": [1, 2.5, None, True]}, [], "text", {"deep": {"er": [[]]}}])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_survives_a_round_trip(tmp_path: Path, value: Any, indent: int | None) -> None:
    path = tmp_path / "a.json"
    write_json(path, value, indent=indent)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_in_json(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"scores\.json was not written"):
        write_json(tmp_path / "scores.json", {"AP": value})
    assert names(tmp_path) == []


HOLD = """
import sys
from pathlib import Path
from tinydet._internal.atomic import claim
with claim(Path(sys.argv[1]), folder=len(sys.argv) > 2):
    print("claimed", flush=True)
    sys.stdin.readline()
"""


def holder(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.parametrize("folder", [False, True])
def test_an_output_belongs_to_one_process_until_it_ends_or_is_killed(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "m.pth"
    first = holder(str(path), *(["folder"] if folder else []))
    with pytest.raises(OSError, match=f"^.*another run is writing {path}; wait for it, stop it"), claim(path):
        pass
    with claim(tmp_path / "other.pth", None):
        pass
    first.communicate("end\n", timeout=60)
    assert names(tmp_path) == []
    killed = holder(str(path))
    killed.kill()
    killed.communicate(timeout=60)
    with claim(path):
        assert names(tmp_path) == [".m.pth.lock"]
    assert names(tmp_path) == []


def test_a_link_and_its_target_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "link.pth").symlink_to(tmp_path / "m.pth")
    with (
        claim(tmp_path / "m.pth"),
        pytest.raises(OSError, match="another run is writing"),
        claim(tmp_path / "link.pth"),
    ):
        pass


def test_only_one_process_at_a_time_claims_an_output(tmp_path: Path) -> None:
    """Each removes the lock that the next one may have just opened."""
    held, most, claims = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal held, most, claims
        for _ in range(100):
            try:
                with claim(tmp_path / "m.pth"):
                    with guard:
                        held += 1
                        most, claims = max(most, held), claims + 1
                    with guard:
                        held -= 1
            except OSError as error:
                assert "another run" in str(error)  # noqa: PT017

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and claims > 0
    assert names(tmp_path) == []


def test_an_output_that_cannot_be_written_is_reported_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, folder, message in (
        (tmp_path / "file" / "deeper" / "m.pth", False, "file is a file, not a folder"),
        (tmp_path / "folder", False, "folder is a folder; name a file"),
        (tmp_path / "file", True, "file is a file; name a folder"),
        (Path("/proc/m.pth"), False, "m.pth was not written"),
    ):
        with pytest.raises((OSError, ValueError), match=message), claim(path, folder=folder):
            raise AssertionError
    with claim(Path("/dev/null"), tmp_path / ("n" * 250)):
        pass
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("folder", [False, True])
def test_the_folders_of_a_claim_are_created_and_stay_only_with_files(folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "out"
    with claim(path, folder=folder):
        assert path.parent.is_dir()
    assert names(tmp_path) == []
    with claim(path, folder=folder):
        path.mkdir() if folder else path.touch()
    assert path.exists()


def test_a_folder_with_files_is_claimed_without_a_file_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    folder.mkdir()
    (folder / "old.png").touch()
    with claim(folder, folder=True):
        assert names(tmp_path) == ["plots"]
        with pytest.raises(OSError, match="another run is writing"), claim(folder, folder=True):
            raise AssertionError
    assert names(folder) == ["old.png"]


def test_an_input_is_not_claimed_as_an_output(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    for output in (tmp_path / "a.json", tmp_path / "link.json"):
        inputs = [None, tmp_path / "a.json"]
        with pytest.raises(ValueError, match="is an input and would be"), claim(output, inputs=inputs):
            raise AssertionError
