"""A mapped file that is cut short while it is read ends the process by SIGBUS: in one line, and not without a word."""

import ctypes
import os
import signal
from pathlib import Path

_line = ctypes.create_string_buffer(4096)
_prepared, _place = (ctypes.create_string_buffer(4096) for _ in range(2))
_files: list[Path] = []
_kept: list[object] = []


def tell(path: Path) -> None:
    """From now on a SIGBUS names this file, among those told before, and ends the process with exit code 2.

    The reading threads are compiled code, where a handler of Python's would never run: this one is compiled, too.
    """
    if not _files:
        signal_number, handler = ctypes.c_int(signal.SIGBUS), ctypes.c_void_p(_handler().address)
        ctypes.CDLL(None).signal(signal_number, handler)
    if path not in _files:
        _files.append(path)
    _line.value = f"\nerror: {words()}\n".encode()[: len(_line) - 1]


def words() -> str:
    """What a SIGBUS is told in; nothing where no file was told."""
    if not _files:
        return ""
    return (
        "a file of images was cut short, or its disk failed, while it was read (SIGBUS): one of "
        f"{', '.join(map(str, _files))}; delete it and go on with resume=auto, which writes it anew"
    )


def renames(prepared: Path, place: Path) -> None:
    """From now on a SIGBUS also moves a file to a place: no more than that can be done when it comes."""
    _prepared.value = b""  # no moment with the one's name and the other's place
    _place.value = os.fsencode(place.resolve())
    _prepared.value = os.fsencode(prepared.resolve())


def renames_nothing() -> None:
    """Takes `renames` back."""
    _prepared.value = b""


def _handler():  # type: ignore[no-untyped-def]
    import numba  # FFCV brings it

    libc = ctypes.CDLL(None)
    write, strlen, rename, leave = libc.write, libc.strlen, libc.rename, libc._exit
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_ssize_t
    strlen.argtypes, strlen.restype = (ctypes.c_void_p,), ctypes.c_size_t
    rename.argtypes, rename.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_int
    leave.argtypes, leave.restype = (ctypes.c_int,), None
    line, prepared, place = map(ctypes.addressof, (_line, _prepared, _place))

    @numba.cfunc(numba.void(numba.int32))
    def handler(_number):  # type: ignore[no-untyped-def]
        write(2, line, strlen(line))
        rename(prepared, place)
        leave(2)

    _kept.append(handler)
    return handler
