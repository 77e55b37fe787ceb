"""Models from the Hugging Face Hub, within a limit of time whatever the server does."""

from multiprocessing.pool import ThreadPool
from pathlib import Path

SECONDS = 60.0  # that a whole download may take
ETAG_SECONDS = 5.0  # without an answer before a copy in the cache is taken


def fetch(repository: str, files: tuple[str, ...]) -> Path:
    """Downloads files of one revision of a repository, or finds them in the cache.

    Args:
        repository: "owner/name".
        files: Names of the files.

    Returns:
        The folder that holds them.

    Raises:
        ValueError: If the name is no "owner/name", or anything fails on the way, or it takes longer than `SECONDS`.
    """
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a model of the Hugging Face Hub must be named 'hf:owner/name'; got 'hf:{repository}'")
    errors: list[BaseException] = []
    pool = ThreadPool(1)  # of daemon threads: one that never gets an answer cannot keep the process alive
    download = pool.apply_async(_download, (repository, files), error_callback=errors.append)
    pool.close()
    download.wait(SECONDS)
    if download.ready() and not errors:
        return download.get()
    reason = f"{type(errors[0]).__name__}: {errors[0]}" if errors else f"no end after {SECONDS:g} seconds"
    raise ValueError(
        f"the Hugging Face Hub did not give {' and '.join(files)} of {repository!r} ({' '.join(reason.split())}); "
        f"check the name and the network, or run `hf download {repository} --local-dir FOLDER` and load that folder"
    )


def _download(repository: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download

    revision, folder = None, Path()
    for name in files:
        folder = Path(hf_hub_download(repository, name, revision=revision, etag_timeout=ETAG_SECONDS)).parent
        revision = folder.name  # the commit: all files are of one
    return folder
