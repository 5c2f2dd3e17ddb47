"""The FFCV loader: compiled decoding, cropping and flipping on CPU threads, from one memory-mapped file."""

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from data.beton.files import BetonSettings, beton_path, check_beton, write_beton
from data.datasets.source import ImageSet, Split
from data.order import EpochOrder
from data.torch_loader import READ_TIMEOUT
from data.view import View
from infvit.errors import UsageError

if TYPE_CHECKING:
    from data.beton.decoder import BoxDecoder

Cache = Literal["os", "process", "memory"]


@dataclass(frozen=True)
class FFCVReader:
    """Writes .beton files and reads them through FFCV.

    Crops are resized by OpenCV's area filter, not by PIL's bicubic one: training and validation while training use it,
    reported numbers come from the torch loader. Crops and flips are drawn from the keys of the images, as with the
    torch loader: the same boxes, for any number of threads, processes and any batch size.

    Args:
        cache: who keeps what was read of a file. "os": the operating system, one copy for all processes of a machine,
            given up when memory is short. "process": each process reads pages of 8 MB ahead of time and keeps each for
            as long as an epoch needs it. "memory": each process reads the whole file once and keeps it.
        batches_ahead: batches prepared in advance.
        timeout: seconds after which a batch that does not come is an error.
    """

    cache: Cache = "os"
    batches_ahead: int = 3
    timeout: float = READ_TIMEOUT

    name = "ffcv"

    def __post_init__(self) -> None:
        if self.cache not in get_args(Cache):
            raise UsageError(f"data.loader.cache={self.cache} is unknown: expected one of {', '.join(get_args(Cache))}")
        try:
            with _torch_threads_kept(), _plain_dictionaries():
                import ffcv.loader  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"FFCV cannot be imported ({error}): install it (apt-get install libopencv-dev libturbojpeg0-dev "
                "pkg-config g++; pip install ffcv) or read with data/loader=torch"
            ) from error

    def prepare(self, images: ImageSet, name: str, split: Split, cache_dir: Path, settings: BetonSettings) -> None:
        """Writes the split's file unless it is there."""
        write_beton(images, beton_path(images, name, split, cache_dir, settings), settings)

    def loader(
        self,
        images: ImageSet,
        name: str,
        split: Split,
        cache_dir: Path,
        settings: BetonSettings,
        view: View,
        order: EpochOrder,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Iterable:
        """Batches of (uint8 (B, 3, size, size), labels int64 (B,)), in training with keys int64 (B,) as third.

        Its `sampler` is the order.
        """
        path = beton_path(images, name, split, cache_dir, settings)
        check_beton(path, len(images), images.labels)
        written = path.stat().st_mtime_ns
        with _torch_threads_kept():
            ffcv, decoder = _compiled(self, path, written, view.size, max(workers, 1), device)
        return _Batches(ffcv, decoder, path, view, order, batch_size, self.timeout)


@functools.lru_cache(maxsize=4)
def _compiled(
    reader: FFCVReader,
    path: Path,
    written: int,  # noqa: ARG001 - a file that was written anew is another file
    size: int,
    workers: int,
    device: torch.device,
) -> tuple[Any, "BoxDecoder"]:
    """FFCV's loader with its compiled code, kept for the later jobs of a sweep: compiling takes seconds.

    It may be shared: each epoch has an order, a batch size, buffers and a thread of its own.
    """
    from ffcv.fields.decoders import IntDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import Squeeze, ToDevice, ToTensor

    from data.beton.decoder import BoxDecoder

    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    decoder = BoxDecoder(size)
    loader = Loader(
        str(path),
        batch_size=1,  # an epoch has its own
        num_workers=workers,
        os_cache=reader.cache != "process",
        drop_last=False,  # the order decides what is left out
        batches_ahead=reader.batches_ahead,
        pipelines={
            "image": [decoder, ToTensor(), *to_device],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device],
        },
    )
    if reader.cache == "memory":
        loader.memory_manager.context.mmap = _whole(path)  # where FFCV would map the file
    return loader, decoder


def _whole(path: Path) -> np.ndarray:
    """The bytes of the file, read-only; UsageError if they would not fit into memory."""
    size, free = path.stat().st_size, _free_memory()
    if size > free:
        raise UsageError(
            f"{path} has {size / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free: data/loader=ffcv_memory keeps "
            "all of it in every process, data/loader=ffcv leaves that to the operating system"
        )
    content = np.fromfile(path, np.uint8)
    content.setflags(write=False)
    return content


def _free_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


class _Batches:
    batch_sampler = None  # Lightning asks for it wherever it finds a `sampler`

    def __init__(
        self,
        ffcv: Any,
        decoder: "BoxDecoder",
        path: Path,
        view: View,
        order: EpochOrder,
        batch_size: int,
        timeout: float,
    ) -> None:
        self.loader, self.decoder, self.path = ffcv, decoder, path
        self.view, self.sampler, self.batch_size = view, order, batch_size
        self.about, self.timeout = _about(path), timeout

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        from data.beton.decoder import Epoch

        keys = self.sampler.keys()
        with _torch_threads_kept():
            batches = Epoch(self.loader, self.decoder, self.sampler.indices(), keys, self.view, self.batch_size)
        try:
            for start in range(0, len(keys), self.batch_size):
                # FFCV fills a ring of buffers anew after a few steps, also while a batch is still in use.
                images, labels = (part.clone() for part in self._next(batches))
                own = keys[start : start + self.batch_size]
                yield (images, labels, own) if self.sampler.shuffle else (images, labels)
        finally:
            batches.stop()  # a consumer that stops early would leave the reading thread and its buffers behind

    def _next(self, batches: Any) -> tuple[Tensor, Tensor]:
        """Returns the next batch; a reading thread that died or hangs is an error."""
        queue, start = batches.output_queue, time.perf_counter()
        first = not getattr(self.loader, "has_read", False) and self.sampler.rank == 0
        announced = False
        with queue.not_empty:
            while not queue.queue:
                queue.not_empty.wait(timeout=1)
                if not queue.queue and not batches.is_alive():
                    self._check(_about(self.path))
                    raise RuntimeError(f"FFCV's reading thread died while it read {self.path} (its error stands above)")
                if not queue.queue and time.perf_counter() - start > self.timeout:
                    raise UsageError(
                        f"FFCV's reading thread gave no batch of {self.path} for {self.timeout:.0f} s: it hangs, or "
                        "its disk; resume with the same command and resume=auto, or give a slow disk more time by "
                        "+data.loader.timeout=SECONDS"
                    )
                if first and not announced and not queue.queue:
                    announced = True
                    print("FFCV compiles its reading code; the first batch waits for it", flush=True)
        if announced:
            print(f"FFCV compiled its reading code in {time.perf_counter() - start:.1f} s", flush=True)
        self.loader.has_read = True
        about = _about(self.path)
        if about is not None:  # one that is removed stays until its readers end
            self._check(about)
        return next(batches)

    def _check(self, about: tuple[int, int] | None) -> None:
        if about != self.about:
            what = "is gone" if about is None else "has changed"
            raise UsageError(
                f"{self.path} {what} while the run reads it: delete what is left, go on with resume=auto, and it is "
                "written anew"
            )


def _about(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """FFCV sets torch's threads for computing to its own number for reading."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _plain_dictionaries() -> Iterator[None]:
    """FFCV keeps two numbers in a dictionary that numba compiles on import, for 3 s; no compiled code reads it."""
    from numba import typed

    compiled, typed.Dict = typed.Dict, dict
    try:
        yield
    finally:
        typed.Dict = compiled
