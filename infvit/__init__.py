"""InfViT: Infinite Self-Attention for vision (arXiv:2603.00175). Importing it registers the models with timm."""

from infvit import sharing, zoo
from infvit.vit import VisionTransformer

__all__ = ["VisionTransformer", "sharing", "zoo"]
