"""The FFCV loader: compiled decoding, cropping and flipping on CPU threads, from one memory-mapped file."""

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.beton.files import check_beton, write_beton
from data.datasets.source import ImageSet
from data.order import EpochOrder
from data.view import View
from infvit.errors import UsageError


@dataclass(frozen=True)
class FFCVReader:
    """Writes .beton files and reads them through FFCV.

    Crops are resized by OpenCV's area filter, not by PIL's bicubic one: training and its validation use it, reported
    numbers come from the torch loader. Crops and flips are drawn from the keys of the images, so they are the same
    boxes as with the torch loader, for any number of threads and processes and any batch size.

    Args:
        timeout: seconds after which a missing batch is an error.
    """

    timeout: float = 600.0

    name = "ffcv"
    prepare = staticmethod(write_beton)

    def __post_init__(self) -> None:
        try:
            with _torch_threads_kept(), _without_compiling():
                import ffcv.loader  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"FFCV cannot be imported ({error}): install it (apt-get install libopencv-dev libturbojpeg0-dev "
                "pkg-config g++; pip install ffcv) or read with data/loader=torch"
            ) from error

    def loader(
        self,
        images: ImageSet,
        beton: Path,
        view: View,
        order: EpochOrder,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Iterable:
        """Returns batches as TorchReader's loader does; `order` is its `sampler`."""
        check_beton(beton, len(images), images.labels)
        written = beton.stat().st_mtime_ns
        with _torch_threads_kept():
            ffcv, decoder = _compiled(beton, written, view.size, max(workers, 1), device)
        return _Batches(ffcv, decoder, beton, view, order, batch_size, self.timeout)


@functools.lru_cache(maxsize=4)
def _compiled(
    path: Path,
    written: int,  # noqa: ARG001 - a file that was written again is another file
    size: int,
    workers: int,
    device: torch.device,
) -> tuple[Any, Any]:
    """Returns FFCV's loader and its BoxDecoder, cached for the next jobs of a sweep: compiling takes seconds.

    It can be shared: each epoch has its own order, batch size, buffers and thread.
    """
    from ffcv.fields.decoders import IntDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import Squeeze, ToDevice, ToTensor

    from data.beton.decoder import BoxDecoder

    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    decoder = BoxDecoder(size)
    loader = Loader(
        str(path),
        batch_size=1,  # each epoch sets its own
        num_workers=workers,
        os_cache=True,
        drop_last=False,  # the order decides what is dropped
        pipelines={
            "image": [decoder, ToTensor(), *to_device],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device],
        },
    )
    return loader, decoder


@dataclass
class _Batches:
    loader: Any
    decoder: Any
    path: Path
    view: View
    sampler: EpochOrder
    batch_size: int
    timeout: float

    batch_sampler = None  # Lightning reads it wherever it finds a `sampler`

    def __post_init__(self) -> None:
        self.version = _version(self.path)

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        from data.beton.decoder import Epoch

        keys = self.sampler.keys()
        with _torch_threads_kept():
            batches = Epoch(self.loader, self.decoder, self.sampler.indices(), keys, self.view, self.batch_size)
        try:
            for start in range(0, len(keys), self.batch_size):
                # FFCV overwrites its ring of buffers after a few steps, even while a batch is still in use.
                images, labels = (part.clone() for part in self._next(batches))
                own = keys[start : start + self.batch_size]
                yield (images, labels, own) if self.sampler.shuffle else (images, labels)
        finally:
            batches.stop()  # otherwise a consumer that stops early leaves the reading thread and its buffers

    def _next(self, batches: Any) -> tuple[Tensor, Tensor]:
        """Returns the next batch; raises if the reading thread has died or hangs, or the file has changed."""
        queue, start = batches.output_queue, time.perf_counter()
        announce = not self.decoder.has_run and self.sampler.rank == 0
        with queue.not_empty:
            while not queue.queue:
                queue.not_empty.wait(timeout=1)
                if not queue.queue and not batches.is_alive():
                    self._check(_version(self.path))
                    raise RuntimeError(f"FFCV's reading thread died while it read {self.path} (its error is above)")
                if not queue.queue and time.perf_counter() - start > self.timeout:
                    raise UsageError(
                        f"FFCV's reading thread gave no batch of {self.path} for {self.timeout:.0f} s: it hangs, or "
                        "its disk; resume with the same command and resume=auto, or give a slow disk more time by "
                        "+data.loader.timeout=SECONDS"
                    )
                if announce and not queue.queue:
                    announce = False
                    print("FFCV compiles its reading code; the first batch waits for it", flush=True)
        self.decoder.has_run = True
        version = _version(self.path)
        if version is not None:  # a removed file stays until its readers close it
            self._check(version)
        return next(batches)

    def _check(self, version: tuple[int, int] | None) -> None:
        if version != self.version:
            what = "is gone" if version is None else "has changed"
            raise UsageError(
                f"{self.path} {what} while the run reads it: delete what is left and resume with resume=auto, which "
                "writes it again"
            )


def _version(path: Path) -> tuple[int, int] | None:
    """Returns size and modification time of a file; None if it does not exist."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Restores torch's number of threads, which FFCV sets to its own number of readers."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _without_compiling() -> Iterator[None]:
    """Switches numba off: FFCV's import compiles for 5 s a dictionary of two numbers that no compiled code reads."""
    from numba import config

    before, config.DISABLE_JIT = config.DISABLE_JIT, True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        config.DISABLE_JIT = before  # type: ignore[attr-defined]
