"""How long RandAugment takes for a batch of 256 on the device, against timm's in Pillow for 64 images on one core.

    python -m tests.data.bench_augment [--device cuda] [--threads 1 2] [--rounds 20]

Both work on 224 px photographs in bytes, with `rand-m9-mstd0.5-inc1` and bicubic interpolation as in DeiT's recipe, and
in turns, so that what else the machine does falls on both. Prints the medians of the times and of the rounds' ratios; a
ratio of 1 means four images on the device for one of timm's.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import PIL
import timm
import torch

from data.augment import RandAugment, RandomErasing
from tests.data import timm_in_pillow
from tests.data.photographs import photographs, random_keys


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run(device: torch.device, threads: int, rounds: int) -> None:
    """Prints one row per variant of the device's side."""
    torch.set_num_threads(threads)
    pictures = photographs(64, 224, 224)
    originals = [timm_in_pillow.to_pil(picture) for picture in pictures]
    policy = timm_in_pillow.rand_augment()
    batch = pictures.repeat(4, 1, 1, 1).to(device)
    own, normal, keys = batch.clone(), torch.randn(batch.shape, device=device), random_keys(256).to(device)

    variants: dict[str, Callable[[], object]] = {
        "RandAugment": lambda: RandAugment()(own, keys),
        "RandomErasing": lambda: RandomErasing()(normal, keys),
    }
    times: dict[str, list[float]] = {name: [] for name in ["timm", *variants]}
    for round_ in range(rounds + 2):
        own.copy_(batch)
        measured = {"timm": seconds(lambda: [policy(image) for image in originals], torch.device("cpu"))}
        measured.update({name: seconds(variant, device) for name, variant in variants.items()})
        if round_ >= 2:
            for name, value in measured.items():
                times[name].append(value)
    reference = times.pop("timm")
    print(f"\n{device}, {threads} thread(s): timm in Pillow, 64 images: {1e3 * statistics.median(reference):.1f} ms")
    for name, measured_times in times.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(measured_times, reference, strict=True))
        print(f"  {name:32s} 256 images: {1e3 * statistics.median(measured_times):7.1f} ms   ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}, on {name}")
    for threads in arguments.threads:
        run(device, threads, arguments.rounds)


if __name__ == "__main__":
    main()
