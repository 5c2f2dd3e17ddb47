"""The formulas of maps and head statistics as written, one head of one image at a time, in NumPy and float64."""

import networkx as nx
import numpy as np


def patches(values, prefix):
    """The patches' part of a map (N), summing to 1."""
    values = values[prefix:]
    return values / values.sum()


def reader(N, prefix, by_class_token):
    p = np.zeros(N)
    if by_class_token:
        p[0] = 1
    else:
        p[prefix:] = 1 / (N - prefix)
    return p


def rows_to_one(W):
    return np.stack([row / row.sum() if row.sum() else row for row in W])


def measure(method, W, gamma, p):
    """One of the maps of a graph, of a matrix W (N, N), before the patches are taken; gamma None for no discount."""
    W, N = np.abs(W), len(W)
    M = gamma * W if gamma is not None else 0.95 * rows_to_one(W)
    if method == "attention":
        return p @ W
    if method == "katz_in":
        return katz(M)
    if method == "katz_out":
        return katz(M.T)
    if method == "visits":
        return p @ np.linalg.inv(np.eye(N) - M)
    assert method == "eigenvector"
    graph = nx.from_numpy_array(W, create_using=nx.DiGraph)
    if nx.is_strongly_connected(graph):
        values = np.array(list(nx.eigenvector_centrality_numpy(graph, weight="weight").values()))
    else:  # which networkx refuses
        values = perron(W, "left")[0]
    return values / values.sum()


def katz(M):
    """networkx includes the empty path."""
    graph = nx.from_numpy_array(M, create_using=nx.DiGraph)
    found = nx.katz_centrality_numpy(graph, alpha=1, beta=1, normalized=False, weight="weight")
    return np.array(list(found.values())) - 1


def rollout(blocks, p):
    """p R_L ... R_1, with the mean of the heads in each of the blocks (H, N, N)."""
    R = np.eye(blocks[0].shape[-1])
    for W in np.abs(blocks):
        R = rows_to_one(W.mean(0) + np.eye(len(R))) @ R
    return p @ R


def propagated(blocks, p):
    """p (R - I) with R = R + A R of the mean relevance of the heads in each of the blocks (H, N, N)."""
    R = np.eye(blocks[0].shape[-1])
    for relevance in blocks:
        R = R + relevance.mean(0) @ R
    return p @ (R - np.eye(len(R)))


def entropy(row):
    row = np.abs(row) / np.abs(row).sum()
    return -sum(x * np.log(x) for x in row if x > 0)


def linear_weights(Q, K):
    norms = np.linalg.norm(Q, axis=1)
    qbar = (norms / (norms.sum() + 1e-6)) @ Q
    a = np.maximum(K @ qbar / Q.shape[1], 0)
    return a / (a.sum() + 1e-6)


def perron(W, side):
    values, vectors = np.linalg.eig(W if side == "right" else W.T)
    at = values.real.argmax()
    return np.abs(vectors[:, at].real), values.real[at]


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
