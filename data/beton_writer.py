"""FFCV's writer, watched: it waits forever for a process of its own that died."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.source import ImageSet
from infvit.errors import UsageError

if TYPE_CHECKING:
    from data.beton import BetonSettings


def write_watched(images: ImageSet, path: Path, settings: "BetonSettings") -> None:
    """Writes all images to `path`.

    Raises:
        UsageError: an image cannot be read or does not fit, the disk is full, or a writing process was killed.
    """
    failures: Any = multiprocessing.SimpleQueue()
    writing = multiprocessing.Process(target=_write, args=(images, path, settings, failures))
    writing.start()
    try:
        while writing.is_alive() and failures.empty():
            writing.join(0.05)
        if not failures.empty():
            raise UsageError(f"{path} cannot be written: {failures.get()}")
        if writing.exitcode:
            raise UsageError(f"{path} cannot be written: the writing process ended with {writing.exitcode}")
    finally:
        _end(writing)


def _write(images: ImageSet, path: Path, settings: "BetonSettings", failures: Any) -> None:
    os.setpgid(0, 0)  # one group with FFCV's workers, which wait for each other and must end together
    from ffcv.fields import IntField, RGBImageField
    from ffcv.utils import chunks
    from ffcv.writer import DatasetWriter

    threading.Thread(target=_report_killed_workers, args=(failures,), daemon=True).start()
    try:
        image = RGBImageField(settings.mode, max_resolution=settings.max_resolution, jpeg_quality=settings.quality)
        workers = len(os.sched_getaffinity(0))
        writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=workers)
        signal.signal(signal.SIGTERM, _ender(writer))
        todo = chunks(list(enumerate(range(len(images)))), 100)
        # What from_indexed_dataset does, with a worker that says why it failed.
        writer._write_common(len(images), todo, _work, (images, failures))
    except Exception as error:
        failures.put(_reason(error))


def _ender(writer: Any) -> Any:
    """A signal handler that takes the writer's shared memory along; its workers inherit it."""
    owner = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() == owner and hasattr(getattr(writer, "metadata_sm", None), "unlink"):
            writer.metadata_sm.unlink()
        os._exit(1)

    return end


def _work(*arguments: Any) -> None:
    from ffcv.writer import worker_job_indexed_dataset

    *of_ffcv, images, failures = arguments
    allocator = of_ffcv[4]
    named = _Named(images)
    try:
        worker_job_indexed_dataset(*of_ffcv, named)
    except BaseException as error:
        where = f" (at {_title(images, named.last)})" if named.last is not None else ""
        failures.put(_reason(error, allocator.page_size) + where)
        os._exit(1)  # unwinding would wait for pages of processes that are about to be ended


class _Named:
    """Remembers which image was asked for last, to name it."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.last: int | None = None

    def __getitem__(self, index: int) -> Any:
        self.last = index
        return self.images[index]


def _report_killed_workers(failures: Any) -> None:
    seen: set[Any] = set()
    while True:
        seen |= set(multiprocessing.active_children())
        for worker in seen:
            if (worker.exitcode or 0) < 0:
                failures.put(f"a writing process was killed by signal {-worker.exitcode}; is there enough memory?")
                return
        time.sleep(0.05)


def _title(images: ImageSet, index: int) -> str:
    paths = getattr(images, "paths", None)
    return str(getattr(images, "root", Path()) / paths[index]) if paths else f"image {index}"


def _reason(error: BaseException, page_size: int = 0) -> str:
    if "Tried allocating" in str(error):
        return (
            f"an image takes more than the {page_size / 2**20:.0f} MiB that FFCV stores at most: give a smaller "
            "data.module.beton.max_resolution, or data.module.beton.mode=jpg"
        )
    if isinstance(error, OSError):
        return f"{error.strerror or error}: make room, or choose another folder with INFVIT_CACHE=DIR"
    return f"{type(error).__name__}: {error}"


def _end(writing: Any) -> None:
    if writing.is_alive() or writing.exitcode:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(writing.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            writing.join(2)
    writing.join()
