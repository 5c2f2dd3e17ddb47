"""Centralities of a token graph: Katz, eigenvector centrality, PageRank, the absorbing chain (arXiv:2603.00175).

Of an N × N matrix of weights (`infvit.graph.dense`), or of its factors, without it (`LowRankGraph`).
"""

from infvit.graph.dense import (
    AbsorbingChain,
    Perron,
    PerronCosine,
    absorbing_chain,
    ahat,
    eigenvector_centrality,
    katz,
    linear_vs_perron,
    pagerank,
    perron_cosine,
    spectral_radius,
)
from infvit.graph.low_rank import LowRankGraph

__all__ = [
    "AbsorbingChain",
    "LowRankGraph",
    "Perron",
    "PerronCosine",
    "absorbing_chain",
    "ahat",
    "eigenvector_centrality",
    "katz",
    "linear_vs_perron",
    "pagerank",
    "perron_cosine",
    "spectral_radius",
]
