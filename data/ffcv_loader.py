"""The FFCV loader: compiled decoding, cropping and flipping on CPU threads, from one memory-mapped file."""

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.beton import BetonSettings, beton_path, check_beton, write_beton
from data.order import EpochOrder
from data.source import ImageSet, Split
from data.view import View
from infvit.errors import UsageError


@dataclass(frozen=True)
class FFCVReader:
    """Writes .beton files and reads them through FFCV.

    Crops are resized by OpenCV's area filter, not by PIL's bicubic one: training and validation while training use it,
    reported numbers come from the torch loader. Random crops and flips draw from numba's per-thread generators, which
    no seed reaches; the order of the images is seeded.

    Args:
        os_cache: leave caching to the operating system (one copy for all processes); otherwise each process keeps
            what it reads.
        batches_ahead: batches prepared in advance.
    """

    os_cache: bool = True
    batches_ahead: int = 3

    name = "ffcv"

    def __post_init__(self) -> None:
        try:
            with _torch_threads_kept():
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
        """Batches of (uint8 (B, 3, size, size), int64 (B,)); its `sampler` is the order."""
        path = beton_path(images, name, split, cache_dir, settings)
        check_beton(path, len(images), images.labels)
        if view.crop_scale is not None:
            view = replace(view, crop_scale=(view.crop_scale[0], view.crop_scale[1]))  # hashable, for the cache
        written = path.stat().st_mtime_ns
        with _torch_threads_kept():
            ffcv = _compiled(self, path, written, view, len(order), batch_size, max(workers, 1), device)
        return _Batches(ffcv, path, order, batch_size)


@functools.lru_cache(maxsize=4)
def _compiled(
    reader: FFCVReader,
    path: Path,
    written: int,  # noqa: ARG001 - a file that was written anew is another file
    view: View,
    length: int,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Any:
    """FFCV's loader with its compiled code, kept for the later jobs of a sweep: random crops compile for 10 s or more.

    It may be shared: each epoch has buffers and a thread of its own, and `_Batches` puts its order in.
    """
    from ffcv.fields.decoders import IntDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor

    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    flip = [RandomHorizontalFlip()] if view.flip else []
    return Loader(
        str(path),
        batch_size=batch_size,
        num_workers=workers,
        os_cache=reader.os_cache,
        order=_traversal(np.arange(length, dtype=np.uint64)),
        drop_last=False,  # the order decides what is left out
        batches_ahead=reader.batches_ahead,
        pipelines={
            "image": [_decoder(path, view), *flip, ToTensor(), *to_device],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device],
        },
    )


class _Batches:
    batch_sampler = None  # Lightning asks for it wherever it finds a `sampler`

    def __init__(self, ffcv: Any, path: Path, order: EpochOrder, batch_size: int) -> None:
        self.loader, self.path, self.sampler, self.batch_size = ffcv, path, order, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.loader.traversal_order.indices = self.sampler.indices().astype(np.uint64)
        with _torch_threads_kept():
            batches = iter(self.loader)
        try:
            while (batch := self._next(batches)) is not None:
                images, labels = batch
                # FFCV fills a ring of buffers anew after a few steps, also while a batch is still in use.
                yield images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format), labels.clone()
        finally:
            batches.close()  # a consumer that stops early would leave the reading thread and its buffers behind

    def _next(self, batches: Any) -> tuple[Tensor, Tensor] | None:
        """The next batch, or None at the end. A reading thread that died is an error, not an endless wait."""
        queue, start = batches.output_queue, time.perf_counter()
        first = not getattr(self.loader, "has_read", False) and self.sampler.rank == 0
        announced = False
        with queue.not_empty:
            while not queue.queue:
                queue.not_empty.wait(timeout=1)
                if not queue.queue and not batches.is_alive():
                    raise RuntimeError(f"FFCV's reading thread died while it read {self.path} (its error stands above)")
                if first and not announced and not queue.queue:
                    announced = True
                    print("FFCV compiles its reading code; the first batch waits for it", flush=True)
        if announced:
            print(f"FFCV compiled its reading code in {time.perf_counter() - start:.1f} s", flush=True)
        self.loader.has_read = True
        return next(batches, None)


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """FFCV sets torch's threads for computing to its own number for reading."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decoder(path: Path, view: View) -> Any:
    from ffcv.fields.rgb_image import (
        CenterCropRGBImageDecoder,
        RandomResizedCropRGBImageDecoder,
        SimpleRGBImageDecoder,
    )
    from ffcv.reader import Reader

    size = (view.size, view.size)
    if view.crop_scale is not None:
        return RandomResizedCropRGBImageDecoder(size, scale=tuple(view.crop_scale))
    metadata = Reader(str(path)).metadata
    fields = metadata[metadata.dtype.names[0]]
    if view.crop_ratio == 1 and (fields["width"] == view.size).all() and (fields["height"] == view.size).all():
        return SimpleRGBImageDecoder()
    return CenterCropRGBImageDecoder(size, ratio=view.crop_ratio)


def _traversal(indices: np.ndarray) -> Any:
    """FFCV's traversal order with indices that are put in from outside; FFCV counts epochs itself, we follow Lightning.

    Args:
        indices: (n,) uint64; n stays the same.
    """
    from ffcv.traversal_order.base import TraversalOrder

    class Traversal(TraversalOrder):
        def __init__(self) -> None:
            self.indices, self.sampler = indices, None

        def __call__(self, loader: Any) -> "Traversal":
            return self

        def sample_order(self, epoch: int) -> np.ndarray:
            return self.indices

    return Traversal()
