"""Saves models to folders, the Hugging Face Hub and ONNX: safetensors and a config of names, without pickle."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from torch import nn

from infvit.attention.registry import ATTENTIONS, find, full_name, name_of
from infvit.errors import UsageError
from infvit.positions import POSITIONS

NAMED: dict[str, Mapping[str, Callable[..., Any]]] = {"attention": ATTENTIONS, "positions": POSITIONS}
"""What a config may name, by argument, besides attentions of installed packages; it can choose from these alone."""


def _to_json(part: Callable[..., Any]) -> dict[str, Any]:
    """A class, a function or a partial of one as {"name": ..., options}, or {"unnamed": full name} outside `NAMED`."""
    if isinstance(part, functools.partial):
        return {**_to_json(part.func), **part.keywords}
    for parts in NAMED.values():
        for name, known in parts.items():
            if part is known:
                return {"name": name}
    return {"unnamed": full_name(part) if hasattr(part, "__qualname__") else repr(part)}


def _from_json(argument: str, value: Any) -> Callable[..., Any]:
    name = value.get("name") if isinstance(value, dict) else None
    if isinstance(name, str) and argument == "attention":
        part: Callable[..., Any] = find(name)
    elif isinstance(name, str) and name in NAMED[argument]:
        part = NAMED[argument][name]
    else:
        known = ", ".join(NAMED[argument])
        raise UsageError(f"config.json: {argument}={json.dumps(value)} is not one of {known}")
    return functools.partial(part, **{key: option for key, option in value.items() if key != "name"})


class HubModel(PyTorchModelHubMixin):
    """Adds huggingface_hub's `save_pretrained`, `from_pretrained` and `push_to_hub` to models made of named parts."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(
            coders={kind: (_to_json, lambda value: value) for kind in (type, functools.partial, FunctionType)},
            library_name="infvit",
            license="mit",
            pipeline_tag="image-classification",
            tags=["infinite-self-attention"],
            paper_url="https://arxiv.org/abs/2603.00175",
            **arguments,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the model's constructor, as `save_pretrained` writes them."""
        return cast(dict[str, Any], self._hub_mixin_config)

    def _save_pretrained(self, save_directory: Path) -> None:
        for argument, parts in NAMED.items():
            part = self.config.get(argument, {})
            if "unnamed" in part:
                name = name_of(part["unnamed"]) if argument == "attention" else None
                if name is None:
                    raise UsageError(
                        f"{argument}={part['unnamed']} has no name in a config: use one of {', '.join(parts)}, save "
                        "the state_dict, or name an attention: infvit.attention.register(name, Class)"
                    )
                part["name"] = name
                del part["unnamed"]
        super()._save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **arguments: Any) -> Any:
        for argument in NAMED.keys() & arguments.keys():
            if not callable(arguments[argument]):
                arguments[argument] = _from_json(argument, arguments[argument])
        try:
            return super()._from_pretrained(model_id=model_id, strict=strict, **arguments)
        except SafetensorError as error:
            raise UsageError(f"{model_id}: model.safetensors is incomplete ({error}): copy it again") from error


def export_onnx(model: nn.Module, path: str | Path, image_size: int | tuple[int, int], in_chans: int = 3) -> None:
    """Writes the model in eval mode as ONNX, "images" (batch, C, height, width) → "logits", for any batch size.

    Needs the packages `onnx` and `onnxscript` (pip install "infvit[onnx]"). Pure InfSA is exported with its full
    N × N matrix.

    Args:
        image_size: side of the images in pixels, or (height, width); fixed in the file.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    some = next(model.parameters())
    images = torch.zeros(2, in_chans, height, width, dtype=some.dtype, device=some.device)
    training = model.training
    try:
        torch.onnx.export(
            model.eval(),
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    finally:
        model.train(training)
