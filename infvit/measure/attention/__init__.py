"""Attention maps: where a model looks, how good its maps are, and how its heads behave."""
