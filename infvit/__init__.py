"""InfViT: Infinite Self-Attention for vision (arXiv:2603.00175). Importing it registers the models with timm."""

from infvit import hub, timm_registry
from infvit.vit import VisionTransformer

__all__ = ["VisionTransformer", "hub", "timm_registry"]
