"""Small disks of memory that can be full: a tmpfs each, whose size is set to what is used, and back.

Mounted in a mount namespace of this process and its children, so nobody else sees them and the kernel removes them with
the last of these processes, however that ends. Where that isn't permitted (it takes root), `separate` says so.
"""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x20000
_ATTEMPTS_MAX: Final = 20


def separate() -> str | None:
    """Give this process mounts of its own, before it has threads or children; why not, if it can't be."""
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
            return os.strerror(ctypes.get_errno())
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
    except (AttributeError, OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return None


class Disk:
    """A file system of its own at `path`, with room for `bytes_max` bytes until it is filled."""

    def __init__(self, name: str, path: Path, *, bytes_max: int) -> None:
        self.name = name
        self.path = path
        self._bytes_max = bytes_max
        path.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={bytes_max},mode=755", f"holdfast-chaos-{name}", str(path))

    def fill(self) -> None:
        """From now on every byte more is one too many: "No space left on device"."""
        for attempt in range(_ATTEMPTS_MAX):
            has = os.statvfs(self.path)
            used = (has.f_blocks - has.f_bfree) * has.f_frsize
            try:
                self._resize(used)
            except subprocess.CalledProcessError:  # it has grown in the meantime
                if attempt + 1 == _ATTEMPTS_MAX:
                    raise
            else:
                return

    def free(self) -> None:
        self._resize(self._bytes_max)

    def unmount(self) -> None:
        """What is on it is gone; the folder below stays, and is empty."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, capture_output=True)

    def _resize(self, size: int) -> None:
        _mount("-o", f"remount,size={size}", str(self.path))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
