"""The options of `infvit.measure.attention.quality`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from infvit.errors import expect
from infvit.measure.attention.maps import METHODS
from infvit.measure.attention.patch_removal import shares


@dataclass
class Options:
    """The options that conf/eval/attention.yaml explains, and `at`, the shares of removed patches.

    Raises:
        UsageError: for unknown methods and values out of range.
    """

    methods: str | Sequence[str] | None
    block: int | None
    images: int | None
    removal: Literal["mean", "blur", "tokens"]
    step: float
    boxes: str | None
    upsampling: Literal["nearest", "bilinear"]
    threshold: float
    batch_size: int
    device: str | None

    def __post_init__(self) -> None:
        self.methods = [self.methods] if isinstance(self.methods, str) else self.methods
        for method in self.methods or ():
            expect(method in METHODS, f"methods={method} is unknown", f"one of {', '.join(METHODS)}")
        share = f"threshold={self.threshold} is not a share of a map's largest value"
        expect(0 <= self.threshold <= 1, share, "0 to 1")
        for name, number in (("images", self.images), ("batch_size", self.batch_size)):
            expect(number is None or number >= 1, f"{name}={number} is not a number of images", "1 or more")
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.at = shares(self.step)
