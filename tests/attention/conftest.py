import pytest

from infvit.attention import graph_tiles, pure


@pytest.fixture(params=["dense", "tiles"])
def path(request, monkeypatch):
    """Both ways to compute Pure InfSA: with the matrix in memory, and in tiles, the last row and column smaller."""
    if request.param == "tiles":
        monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
        monkeypatch.setattr(graph_tiles, "TILE", 5)
    return request.param
