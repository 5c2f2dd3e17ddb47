"""Time and memory of the layers against the number of tokens: the table and the plot of infvit/attention/README.md.

    python -m tests.attention.scaling                                   # writes both, about 7 minutes on 2 cores

Times are one forward pass of the layer, all taking turns in each round: the median over rounds, after passes that do
not count. Memory is what a forward pass, and one with its backward pass, hold at most beyond weights, input and the
output's gradient, each case in a process of its own. What would hold N × N matrices of more than 1.2 GB is not run.
"""

import statistics
from functools import partial
from pathlib import Path

import altair
import torch
import vl_convert

from infvit.measure.subprocess_case import run_isolated
from infvit.run.environment import hardware
from tests.attention.bench_cases import CONTESTANTS, HOLDS_MATRICES, megabytes_held
from tests.bench_twins import race

PAGE = Path(__file__).parents[2] / "infvit" / "attention"
DIM, HEADS = 1024, 16
SIZES, ROUNDS = [1024, 4096, 16384], 3
LARGEST = 1.2e9
BEGIN, END = "<!-- scaling: made by python -m tests.attention.scaling -->", "<!-- end of scaling -->"
TITLES = {
    "infsa": "Pure InfSA",
    "infsa_as_written": "Pure InfSA as written",
    "kernel_infsa": "KernelInfSA, all hops",
    "linear_infsa": "Linear-InfSA",
    "linear_infsa_chunks": "Linear-InfSA, chunk=1024",
    "linear_infsa_as_written": "Linear-InfSA as written",
    "softmax": "softmax, fused",
    "softmax_unfused": "softmax, unfused",
}


def measure(tokens: int) -> list[dict[str, float | str]]:
    """One row per layer; timing and memory processes do not run at the same time."""
    names = [name for name in CONTESTANTS if name not in HOLDS_MATRICES or 4 * HEADS * tokens**2 <= LARGEST]
    layers = {name: CONTESTANTS[name](DIM, HEADS).eval() for name in names}
    with torch.inference_mode():
        seconds = race(layers, torch.randn(1, tokens, DIM), ROUNDS)
    rows: list[dict[str, float | str]] = []
    for name in names:
        pair = (run_isolated(partial(megabytes_held, name, tokens, DIM, HEADS, backward)) for backward in (False, True))
        forward, both = (outcome.value for outcome in pair)
        ms = statistics.median(seconds[name]) * 1e3
        rows.append({"layer": TITLES[name], "tokens": tokens, "ms": ms, "forward": forward, "both": both})
    return rows


def table(rows: list[dict[str, float | str]]) -> str:
    """Milliseconds, their ratio to fused softmax, and MB, by layer and number of tokens, in Markdown."""
    at = {(row["layer"], row["tokens"]): row for row in rows}
    lines = [
        f"{hardware()['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, batch 1, "
        f"D {DIM}, H {HEADS}.",
        "Each cell: ms of a forward pass (over fused softmax's); MB forward, MB with the backward pass.\n",
        f"| layer | {' | '.join(f'{N:,} tokens' for N in SIZES)} |",
        f"|---|{'---|' * len(SIZES)}",
    ]
    for title in TITLES.values():
        cells = []
        for N in SIZES:
            row, fused = at.get((title, N)), at[TITLES["softmax"], N]
            cells.append(
                f"{row['ms']:,.0f} ms ({row['ms'] / fused['ms']:.2g}x); {row['forward']:,.0f}, {row['both']:,.0f} MB"
                if row
                else f"not run: {4 * HEADS * N**2 / 1e9:.0f} GB a matrix"
            )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, float | str]]) -> bytes:
    """PNG of time and of memory against tokens, both axes logarithmic."""
    measures = {"ms": "forward pass, ms", "both": "memory of both passes, MB"}
    data = altair.Data(values=rows)
    charts = [
        altair.Chart(data, width=330, height=300)
        .mark_line(point=True)
        .encode(
            x=altair.X("tokens:Q", scale=altair.Scale(type="log", base=2), title="tokens"),
            y=altair.Y(f"{field}:Q", scale=altair.Scale(type="log"), title=title),
            color=altair.Color("layer:N", sort=list(TITLES.values()), title=None, legend=altair.Legend(labelLimit=300)),
        )
        for field, title in measures.items()
    ]
    return vl_convert.vegalite_to_png(altair.hconcat(*charts).to_dict(), scale=2)


def main() -> None:
    torch.manual_seed(0)
    rows = [row for tokens in SIZES for row in measure(tokens)]
    found = table(rows)
    (PAGE / "scaling.png").write_bytes(plot(rows))
    page = PAGE / "README.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.partition(END)[2]}")
    print(f"\n{found}")


if __name__ == "__main__":
    main()
