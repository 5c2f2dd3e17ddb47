"""The naive twin of every operator, by its name."""

from tests.attention import naive, naive_baselines

TWINS = naive.TWINS | naive_baselines.TWINS

WITHOUT_WEIGHTS = {"xca", "none"}
"""Operators without weights of tokens."""
SIGNED = {"linformer", "nystrom", "hydra", "inline", "polaformer", "rala", "mila", "differential", "mamba2"}
"""Operators whose implied matrix has weights below 0."""
NARROWEST = {"differential": 2}
"""Channels of the narrowest head, where one is too few."""
