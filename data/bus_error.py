"""A mapped file that is cut short while it is read ends the process by SIGBUS: in one line, and not without a word."""

import ctypes
import signal
from pathlib import Path

import numba

_line = ctypes.create_string_buffer(4096)
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
    line = (
        "\nerror: a file of images was cut short, or its disk failed, while it was read (SIGBUS): one of "
        f"{', '.join(map(str, _files))}; delete it and go on with resume=auto, which writes it anew\n"
    )
    _line.value = line.encode()[: len(_line) - 1]


def _handler():  # type: ignore[no-untyped-def]
    libc = ctypes.CDLL(None)
    write, strlen, leave = libc.write, libc.strlen, libc._exit
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_ssize_t
    strlen.argtypes, strlen.restype = (ctypes.c_void_p,), ctypes.c_size_t
    leave.argtypes, leave.restype = (ctypes.c_int,), None
    line = ctypes.addressof(_line)

    @numba.cfunc(numba.void(numba.int32))
    def handler(_number):  # type: ignore[no-untyped-def]
        write(2, line, strlen(line))
        leave(2)

    _kept.append(handler)
    return handler
