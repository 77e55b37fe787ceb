"""Files are written whole or not at all, never through a link, and by one run at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_arbuf.files import remove_leftovers, sole_writer, write_atomically


def write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text))


def test_file_is_written_into_a_folder_that_is_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b.json", "new")
    assert (tmp_path / "a" / "b.json").read_text() == "new" and len(list((tmp_path / "a").iterdir())) == 1


def test_link_under_the_file_s_name_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("old")
    (tmp_path / "b.json").symlink_to(tmp_path / "other")
    write(tmp_path / "b.json", "new")
    assert (tmp_path / "other").read_text() == "old" and (tmp_path / "b.json").read_text() == "new"


@pytest.mark.parametrize("planted", ["b.json.tmp", "b.tmp", ".b.json.tmp"])
def test_planted_link_is_not_written_through(planted: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("old")
    (tmp_path / planted).symlink_to(tmp_path / "other")
    write(tmp_path / "b.json", "new")
    assert (tmp_path / "other").read_text() == "old" and (tmp_path / "b.json").read_text() == "new"


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    write(tmp_path / "b.json", "old")
    with pytest.raises(ValueError, match=r"b\.json cannot be written .*No space left on device.*before is unchanged"):
        write_atomically(tmp_path / "b.json", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(ValueError, match=r"a/b\.json cannot be written"):
        write(tmp_path / "a" / "b.json", "new")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_has_the_permissions_that_the_user_gives_to_new_ones_and_keeps_them(
    umask: int, mode: int, tmp_path: Path
) -> None:
    path, before = tmp_path / "b.json", os.umask(umask)
    try:
        write(path, "new")
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o640)
        write(path, "newer")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_read_only_is_replaced_and_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write(path, "old")
    path.chmod(0o444)
    modes = []

    def write_new(file: Path) -> None:
        modes.append(file.stat().st_mode & 0o200)
        file.write_text("new")

    write_atomically(path, write_new)
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o444 and modes == [0o200]


def test_leftovers_of_one_file_are_removed(tmp_path: Path) -> None:
    for name in (".b.json.x.tmp", ".c.json.x.tmp", "b.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "b.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.json.x.tmp", "b.json"]


def test_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "state.safetensors"
    with (
        sole_writer(path),
        pytest.raises(ValueError, match=r"state\.safetensors belongs to a run that is still going on"),
        sole_writer(path),
    ):
        pass
    with sole_writer(path), sole_writer(tmp_path / "other.safetensors"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from pyro_arbuf.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_lock_of_another_process_holds_and_that_of_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="still going on in another process"), sole_writer(path):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with sole_writer(path):
        pass
