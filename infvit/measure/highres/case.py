"""One case of `eval=highres`: one image through one model in one way, in the case's own process."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh

from infvit.highres import ChunkedTraining, TokenParallel, Tokens, band, chunked, open_image, streamed
from infvit.highres.images import Image
from infvit.highres.inference import bar
from infvit.highres.stages import blocks_of
from infvit.highres.tokens import normalise
from infvit.measure.subprocess_case import peak_memory, resident_memory
from infvit.vit import VisionTransformer

MakeModel = Callable[[], nn.Module]

Way = Literal["dense", "chunked", "streamed", "parallel", "training", "training_dense"]


@dataclass(frozen=True)
class CaseResult:
    """What the process of a case returns.

    Attributes:
        seconds: from opening the image to its logits; of a training step, to the end of the optimizer's step.
        resident: bytes that libraries, weights and, in training, the optimizer take before.
        logits: (classes,); in training those before the step.
        peak: largest peak resident bytes of a process of the case, libraries and weights included.
        communicated: bytes that each process put into all-reduces; None in one process.
    """

    seconds: float
    resident: int
    logits: Tensor
    peak: int
    communicated: int | None = None


def run(make: MakeModel, way: str, path: Path, chunk: int, processes: int) -> CaseResult:
    """Runs one case in this process or, for way "parallel", in `processes` new ones."""
    if way == "parallel":
        return _parallel(make, path, processes)
    model = _model(make)
    if way.startswith("training"):
        return _trained(model, way, path, chunk)
    resident, start = resident_memory(), time.perf_counter()
    image = open_image(path, allow_huge=True)
    if way == "dense":
        with torch.inference_mode():
            logits = model(_pixels(image))
    else:
        tokens = Tokens(model, image, chunk)
        with bar(tokens, way, streaming=way == "streamed") as progress:
            logits = (streamed if way == "streamed" else chunked)(tokens, progress).logits
    return CaseResult(time.perf_counter() - start, resident, logits[0], peak_memory())


def _model(make: MakeModel) -> VisionTransformer:
    torch.manual_seed(0)
    model = make().eval()
    assert isinstance(model, VisionTransformer)
    return model


def _pixels(image: Image, top: int = 0, bottom: int | None = None) -> Tensor:
    pixels = image.read(top, image.height if bottom is None else bottom, 0, image.width)
    return normalise(pixels, torch.float32)[None]


def _trained(model: VisionTransformer, way: str, path: Path, chunk: int) -> CaseResult:
    """Runs one step of AdamW on the image with label 0."""
    net = ChunkedTraining(model.train(), chunk) if way == "training" else model.train()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    resident, start = resident_memory(), time.perf_counter()
    image = _pixels(open_image(path, allow_huge=True))
    logits = net(image)
    nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.long)).backward()
    optimizer.step()
    return CaseResult(time.perf_counter() - start, resident, logits.detach()[0], peak_memory())


def _parallel(make: MakeModel, path: Path, processes: int) -> CaseResult:
    blocks_of(_model(make))  # raises UsageError for a model that cannot run token-parallel
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, make, path, Path(folder), torch.get_num_threads())
        multiprocessing.spawn(_process, arguments, nprocs=processes)
        found = [torch.load(Path(folder) / f"{i}.pt", weights_only=False) for i in range(processes)]
    largest = {name: max(getattr(part, name) for part in found) for name in ("seconds", "resident", "peak")}
    return replace(found[0], **largest)


def _process(process: int, processes: int, make: MakeModel, path: Path, folder: Path, threads: int) -> None:
    """One rank of way "parallel", which reads its own band of the image alone."""
    torch.set_num_threads(max(threads // processes, 1))
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(hours=1), world_size=processes, rank=process
    )
    model = TokenParallel(_model(make), init_device_mesh("cpu", (processes,)))
    distributed.barrier()
    resident, start = resident_memory(), time.perf_counter()
    image = open_image(path, allow_huge=True)
    with torch.inference_mode():
        logits = model(_pixels(image, *band(image.height, model.model.patch_size, process, processes)))
    found = CaseResult(time.perf_counter() - start, resident, logits[0], peak_memory(), model.communicated)
    torch.save(found, folder / f"{process}.pt")
    distributed.destroy_process_group()
