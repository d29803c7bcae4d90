"""The clocks of a replica's machine: they are set, or stand still, as a file says that the nemesis writes."""

import mmap
import os
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

FILE_VARIABLE: Final = "CHAOS_CLOCK_FILE"
_CONTENT: Final = struct.Struct("dd")


class MachineClock:
    """Moves the clocks of one machine, by way of its file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._set_by_s = self._stood_still_s = 0.0
        file.write_bytes(_CONTENT.pack(0.0, 0.0))

    def set_by(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._set_by_s += seconds
        self._write()

    def stood_still(self, seconds: float) -> None:
        """The machine was paused: the monotonic clock has missed this time, and so has the wall clock."""
        self._stood_still_s += seconds
        self._write()

    def _write(self) -> None:
        with self._file.open("r+b") as file:  # in place, because replicas have it mapped
            file.write(_CONTENT.pack(self._set_by_s, self._stood_still_s))


def module_of(file: Path) -> Any:
    """What stands in for the module `time` on this machine, as far as the coordinator's clock needs it."""
    descriptor = os.open(file, os.O_RDONLY)
    content = mmap.mmap(descriptor, _CONTENT.size, access=mmap.ACCESS_READ)
    os.close(descriptor)

    def wall() -> float:
        set_by_s, stood_still_s = _CONTENT.unpack_from(content)
        return time.time() + float(set_by_s) - float(stood_still_s)

    def gettime(clock: int) -> float:
        _, stood_still_s = _CONTENT.unpack_from(content)
        return time.clock_gettime(clock) - float(stood_still_s)

    def monotonic() -> float:
        return gettime(time.CLOCK_MONOTONIC)

    return SimpleNamespace(
        time=wall, clock_gettime=gettime, monotonic=monotonic, CLOCK_BOOTTIME=getattr(time, "CLOCK_BOOTTIME", None)
    )
