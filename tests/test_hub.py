"""The Hub against servers that do not behave; what it gives is in test_checkpoint."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

LOAD = """
import pyro_arbuf
from pyro_arbuf import hub
hub.SECONDS = 2.0
try:
    pyro_arbuf.load("hf:owner/name")
except ValueError as error:
    print(error)
"""


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_server_that_hangs_blocks_neither_the_call_nor_the_end_of_the_process(
    silent_server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = str(tmp_path_factory.mktemp("hub"))
    environment = {"HF_ENDPOINT": silent_server, "HF_HOME": home, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert "did not give config.json and model.safetensors of 'owner/name' (no end after 2 seconds)" in done.stdout
    assert done.returncode == 0 and time.monotonic() - started < 60
