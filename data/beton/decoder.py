"""FFCV's operation for every image: decode, crop, resize and flip, into planes.

FFCV's own random crop and flip draw from generators of its threads, which no seed reaches. Here the box and the flip of
each image are inputs, drawn from the keys of the batch just before it is read. An image stays in the caches of its core
from decoding to the end, and the flip and the change to planes are one pass.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.libffcv import imdecode, resize_crop
from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from torch import Tensor

from data.view import View


class BoxDecoder(SimpleRGBImageDecoder):
    """Decodes images into uint8 (B, 3, size, size), each cropped to a box, resized by OpenCV's area filter and flipped.

    Its second buffer holds (left, top, width, height, flipped) of every image of the batch.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.has_run = False  # whether it is compiled

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        shape, bytes_, words = (3, self.size, self.size), np.dtype("u1"), np.dtype("i8")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=bytes_)
        return state, (AllocationQuery(shape, bytes_), AllocationQuery((5,), words))

    def generate_code(self) -> Callable:
        jpg, size, threads = IMAGE_MODES["jpg"], self.size, Compiler.num_threads
        largest = 3 * int(self.metadata["width"].max()) * int(self.metadata["height"].max())
        read, each = self.memory_read, Compiler.get_iterator()
        decode_jpg, resize = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        to_planes = Compiler.compile(_to_planes)

        def decode(indices, memory, metadata, storage):  # type: ignore[no-untyped-def]
            planes, boxes = memory
            for thread in each(threads):
                decoded = np.empty(largest, np.uint8)
                square = np.empty((size, size, 3), np.uint8)
                for place in range(thread, len(indices), threads):
                    field = metadata[indices[place]]
                    stored = read(field["data_ptr"], storage)
                    height, width = np.uint32(field["height"]), np.uint32(field["width"])
                    if field["mode"] == jpg:
                        decode_jpg(stored, decoded, height, width, height, width, 0, 0, 1, 1, False, False)
                        pixels = decoded[: 3 * height * width].reshape(height, width, 3)
                    else:
                        pixels = stored.reshape(height, width, 3)
                    left, top, w, h, flipped = boxes[place]
                    resize(pixels, top, top + h, left, left + w, square)
                    to_planes(square, planes[place], flipped)
            return planes[: len(indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _to_planes(square, planes, flipped):  # type: ignore[no-untyped-def]
    """(h, w, 3) → (3, h, w), flipped horizontally or not."""
    # With flat indices, which LLVM vectorises: eleven times as fast as with three.
    height, width, _ = square.shape
    source, destination, area = square.reshape(-1), planes.reshape(-1), height * width
    for y in range(height):
        if flipped:
            for x in range(width):
                to, place = y * width + width - 1 - x, 3 * (y * width + x)
                destination[to] = source[place]
                destination[area + to] = source[place + 1]
                destination[2 * area + to] = source[place + 2]
        else:
            for x in range(width):
                to, place = y * width + x, 3 * (y * width + x)
                destination[to] = source[place]
                destination[area + to] = source[place + 1]
                destination[2 * area + to] = source[place + 2]


class Epoch(EpochIterator):
    """FFCV's reading thread for one epoch of images `indices` (n,); draws their boxes and flips from `keys` (n,)."""

    def __init__(
        self, loader: Loader, decoder: BoxDecoder, indices: np.ndarray, keys: Tensor, view: View, batch_size: int
    ) -> None:
        (self.node,) = loader.graph.operation_to_node[decoder]
        self.keys, self.view, self.fields = keys.split(batch_size), view, decoder.metadata
        loader.batch_size = batch_size  # FFCV reads it in the constructor of the epoch only
        Compiler.set_num_threads(loader.num_workers)
        super().__init__(loader, indices.astype(np.uint64))

    def stop(self) -> None:
        """Ends the thread, also while it waits for room in its queue, and closes what it reads from."""
        self.terminate_event.set()
        with self.output_queue.not_full:
            self.output_queue.maxsize = sys.maxsize
            self.output_queue.not_full.notify()
        self.join()
        self.close()

    def run_pipeline(self, b_ix: int, batch_indices: np.ndarray, batch_slot: int, cuda_event: Any) -> Any:
        if self.terminate_event.is_set():
            raise StopIteration  # ends the epoch in FFCV's thread
        keys, fields = self.keys[b_ix], self.fields[batch_indices]
        widths, heights = (torch.from_numpy(fields[side].astype(np.int64)) for side in ("width", "height"))
        boxes = self.memory_allocations["operation"][self.node.id][1][batch_slot]
        boxes[: len(keys), :4] = self.view.boxes(keys, widths, heights)
        boxes[: len(keys), 4] = self.view.flips(keys)
        return super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)
