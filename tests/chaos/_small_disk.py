"""A small tmpfs that only one process and its children see, and moments at which it is full."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.kill import after_steps

SIZE = 48 << 20
NEW_NAMESPACE, NEW_USER, PRIVATE = 0x20000, 0x10000000, 0x4000 | 1 << 18
"""CLONE_NEWNS, CLONE_NEWUSER, MS_REC | MS_PRIVATE."""
DETACH = 2
"""MNT_DETACH: also while files of an ending process are open there."""


@dataclass(frozen=True)
class Disk:
    """A small file system, and a folder on another one for the output of processes.

    Args:
        folder: where it is mounted.
        beside: the folder on another file system.
    """

    folder: Path
    beside: Path

    def fill(self, room: int = 0) -> None:
        """Fills the disk but for `room` bytes."""
        about = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_frsize - room)

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def full_in(self, owner: Any, name: str, calls: range, room: int = 0, stays: bool = False) -> Callable[[], None]:
        """Makes a process fill the disk during calls of a method, counted from 1; with `stays` also after them."""
        real, seen = getattr(owner, name), 0

        def then(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen not in calls:
                return real(*arguments, **named)
            self.fill(room)
            try:
                return real(*arguments, **named)
            finally:
                if not stays:
                    self.free()

        return lambda: setattr(owner, name, then)

    def full_from(self, step: int, to: float = float("inf")) -> Callable[[], None]:
        """Makes a process fill the disk after a step of training and free it after another one."""
        return after_steps({step: self.fill, to: self.free})


class MountError(Exception):
    """The system does not allow this user to mount anything."""


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Mounts the tmpfs for this process and its children; needs root, or a system that allows user namespaces."""
    folder.mkdir(parents=True)
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments):
            raise MountError(f"{name}: {os.strerror(ctypes.get_errno())}")

    call("unshare", NEW_NAMESPACE | (NEW_USER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    call("mount", b"none", b"/", None, PRIVATE, None)
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={SIZE}".encode())
    try:
        yield
    finally:
        libc.umount2(os.fsencode(folder), DETACH)
