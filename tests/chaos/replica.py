"""A coordinator as `python -m app` runs it, but for its name server and its clocks: those are up to the nemesis.

Participants are registered under one name, and a file says what becomes of look-ups. Without it all is well.
"""

import os
import socket
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from app import clock
from app.__main__ import main
from tests.chaos import machine_clock

NAME: Final = "localhost"
"""A name that every machine has, and old code finds in its own way."""
FILE_VARIABLE: Final = "CHAOS_NAMES_FILE"
LOOK_S: Final = 0.05


class Trouble(StrEnum):
    """What the file says."""

    HANG = "hang"
    FAIL = "fail"


def troubled(file: Path) -> Any:
    """getaddrinfo as it is while the file says so."""
    find, never = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        while host == NAME and (trouble := _read(file)):
            if trouble == Trouble.FAIL:
                raise socket.gaierror(socket.EAI_AGAIN, "the name server is in trouble")
            never.wait(LOOK_S)
        return find(host, *arguments, **options)

    return getaddrinfo


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    clock.time = machine_clock.module_of(Path(os.environ[machine_clock.FILE_VARIABLE]))  # type: ignore[attr-defined]
    socket.getaddrinfo = troubled(Path(os.environ[FILE_VARIABLE]))
    sys.exit(main(sys.argv[1:]))
