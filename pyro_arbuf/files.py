"""Writing files: whole or not at all, never through a link, and by one run at a time."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

_TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name of its own beside it, and then gives it its name.

    The temporary name is new (opened exclusively), so nothing planted there is written through; where `path` is a link,
    the link is replaced and what it points to stays. A reader sees the old file or the new one, after a crash too. A
    file that is replaced keeps its permissions.

    Args:
        path: The file; its folder is created if missing.
        write: Writes the content into the file whose path it is given.

    Raises:
        ValueError: If the file cannot be written; what was there before is unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the user's umask keeps back
        temporary = name
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        if path.exists() and not path.is_symlink():
            temporary.chmod(path.stat().st_mode & 0o777)
        os.replace(temporary, path)
        temporary = None
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be written ({error}); choose a folder that is writable and has space. What was there "
            "before is unchanged"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of their writing of a file; only while no other process can be writing it."""
    for leftover in path.parent.glob(f".{path.name}.*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keeps other processes from writing a file, by a lock file beside it; the lock of a dead process does not count.

    Args:
        path: The file; its folder is created if missing.

    Raises:
        ValueError: If another process, or another run of this one, is writing the file, or the folder is not writable.
    """
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{path} belongs to a run that is still going on in another process; wait for it or end it, or choose "
            "another output"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error}); choose a folder that is writable and has space"
        ) from error
    try:
        yield
    finally:
        lock.release()
