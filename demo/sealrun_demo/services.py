"""Servers of the demonstration, on loopback and on ports that the kernel picks."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sealrun_demo import telling, tools

START_SECONDS = 30


@contextmanager
def serving(argv: Sequence[str], log: str, pattern: str) -> Iterator[str]:
    """A server for as long as the block lasts. Yields the first group of `pattern` in its log, as
    soon as it is there. Raises telling.Failed."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while (found := re.search(pattern, _text(log))) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise telling.Failed(f"cannot start {argv[0]}: {_text(log)[-500:]}")
            time.sleep(0.05)
        yield found[1]
    finally:
        tools.stop(process)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()


@contextmanager
def registry(directory: str) -> Iterator[str]:
    """A docker-registry; yields its address, 127.0.0.1:PORT."""
    os.makedirs(directory)
    settings = os.path.join(directory, "config.json")
    with open(settings, "w", encoding="utf-8") as stream:
        json.dump(  # JSON is YAML
            {
                "version": "0.1",
                "storage": {
                    "filesystem": {"rootdirectory": os.path.join(directory, "storage")},
                    "delete": {"enabled": True},
                },
                "http": {"addr": "127.0.0.1:0"},
            },
            stream,
        )
    argv = ["docker-registry", "serve", settings]
    log = os.path.join(directory, "log")
    with serving(argv, log, r"listening on (127\.0\.0\.1:\d+)") as address:
        yield address
