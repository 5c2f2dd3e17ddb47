"""InfViT: Infinite Self-Attention for vision (arXiv:2603.00175). Importing it registers the models with timm."""

from importlib.metadata import PackageNotFoundError, version

from infvit import hub, timm_registry
from infvit.convert import convert
from infvit.vit import VisionTransformer

try:
    __version__ = version("infvit")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["VisionTransformer", "__version__", "convert", "hub", "timm_registry"]
