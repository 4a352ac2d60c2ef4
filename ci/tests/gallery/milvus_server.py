"""A Milvus server for tests: the PyPI package's, on loopback, with its data in a temporary folder."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STARTS_WITHIN = 90
"""Seconds; it takes about 8 on an idle machine."""
TICK = 50
"""Milliseconds by which a read of consistency Strong is late; a server's own setting is 200."""


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """URI of a server that ends with the context; the test is skipped where none can be had."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    milvus = pytest.importorskip("milvus", reason="the package milvus, which holds a server, is not installed")
    server = milvus.MilvusServer(milvus.MilvusServerConfig(data_dir=str(folder)), wait_for_started=False)
    server.config.set("proxy.timeTickInterval", TICK)
    here = os.getcwd()
    try:
        try:
            server.start()
            _wait(server)
        except (OSError, RuntimeError) as error:
            pytest.skip(f"the Milvus server of the package milvus does not start here (is there another one?): {error}")
        finally:
            os.chdir(here)
        yield f"http://127.0.0.1:{server.listen_port}"
    finally:
        server.stop()


def _wait(server) -> None:
    from pymilvus import MilvusClient, MilvusException

    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        if server.server_proc.poll() is not None:
            raise RuntimeError(f"it ended with status {server.server_proc.returncode}")
        try:
            with contextlib.closing(MilvusClient(f"http://127.0.0.1:{server.listen_port}", timeout=2)) as client:
                client.list_collections()
                return
        except MilvusException:
            time.sleep(0.5)
    raise RuntimeError(f"it was not ready within {STARTS_WITHIN} seconds")
