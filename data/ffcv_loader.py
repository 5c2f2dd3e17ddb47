"""The FFCV loader: compiled decoding, cropping and flipping on CPU threads, from one memory-mapped file."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
            import ffcv  # noqa: F401
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
        check_beton(path, len(images))
        return _Batches(self, path, view, order, batch_size, max(workers, 1), device)


class _Batches:
    batch_sampler = None  # Lightning asks for it wherever it finds a `sampler`

    def __init__(
        self,
        reader: FFCVReader,
        path: Path,
        view: View,
        order: EpochOrder,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        from ffcv.fields.decoders import IntDecoder
        from ffcv.loader import Loader
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor

        self.path, self.sampler, self.batch_size = path, order, batch_size
        self.compiled = False
        to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
        flip = [RandomHorizontalFlip()] if view.flip else []
        self.loader = Loader(
            str(path),
            batch_size=batch_size,
            num_workers=workers,
            os_cache=reader.os_cache,
            order=_order_for_ffcv(order),
            drop_last=False,  # the order decides what is left out
            batches_ahead=reader.batches_ahead,
            pipelines={
                "image": [_decoder(path, view), *flip, ToTensor(), *to_device],
                "label": [IntDecoder(), ToTensor(), Squeeze(1), *to_device],
            },
        )

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = time.perf_counter()
        if not self.compiled and self.sampler.rank == 0:
            print("FFCV compiles its reading code (seconds, before the first batch) ...", end=" ", flush=True)
        batches = iter(self.loader)
        while (batch := self._next(batches)) is not None:
            if not self.compiled:
                self.compiled = True
                if self.sampler.rank == 0:
                    print(f"{time.perf_counter() - start:.1f} s", flush=True)
            images, labels = batch
            # FFCV fills a ring of buffers anew after a few steps, also while a batch is still in use.
            yield images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format), labels.clone()

    def _next(self, batches: Any) -> tuple[Tensor, Tensor] | None:
        """The next batch, or None at the end. A reading thread that died is an error, not an endless wait."""
        while batches.output_queue.empty():
            alive = batches.is_alive()
            if not alive and batches.output_queue.empty():
                raise RuntimeError(f"FFCV's reading thread died while it read {self.path} (its error stands above)")
            batches.join(timeout=0.002)
        return next(batches, None)


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
    fields = Reader(str(path)).metadata[Reader(str(path)).metadata.dtype.names[0]]
    if view.crop_ratio == 1 and (fields["width"] == view.size).all() and (fields["height"] == view.size).all():
        return SimpleRGBImageDecoder()
    return CenterCropRGBImageDecoder(size, ratio=view.crop_ratio)


def _order_for_ffcv(order: EpochOrder) -> Any:
    """FFCV's traversal order with our order in it; FFCV counts epochs itself, we follow Lightning's."""
    from ffcv.traversal_order.base import TraversalOrder

    class Traversal(TraversalOrder):
        def __init__(self) -> None:
            self.sampler = None

        def __call__(self, loader: Any) -> "Traversal":
            return self

        def sample_order(self, epoch: int) -> np.ndarray:
            return order.indices().astype(np.uint64)

    return Traversal()
