"""Peak memory of one layer over its weights, its input and its output's gradient; each case in its own process.

    python -m tests.attention.peak_memory infsa --tokens 16384 --dim 1024 --heads 16

Prints the mebibytes that were resident beyond those before the first forward pass, then the seconds of both passes.
"""

import argparse
import time
from pathlib import Path

import torch

from infvit.measure.subprocess_case import peak_memory
from tests.attention.bench_cases import CONTESTANTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layer", choices=list(CONTESTANTS))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--forward", action="store_true", help="forward alone, without keeping anything for backward")
    arguments = parser.parse_args()
    layer = CONTESTANTS[arguments.layer](arguments.dim, arguments.heads)
    # Libraries load code at the first use of each operation: a small pass first, which is not counted.
    layer(torch.randn(1, 600, arguments.dim, requires_grad=True)).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # the largest begins anew
    x = torch.randn(1, arguments.tokens, arguments.dim, requires_grad=True)
    gradient = torch.randn_like(x)
    before, start = peak_memory(), time.perf_counter()
    with torch.set_grad_enabled(not arguments.forward):
        output = layer(x)
    forward, middle = peak_memory() - before, time.perf_counter()
    if not arguments.forward:
        output.backward(gradient)
    both = peak_memory() - before
    print(f"{forward / 2**20:.0f} {both / 2**20:.0f} {middle - start:.1f} {time.perf_counter() - middle:.1f}")


if __name__ == "__main__":
    main()
