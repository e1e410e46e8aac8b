"""Read files of tensors and plain values without executing anything in them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinydet._internal.errors import name_failures
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file


def read_tensors(path: Path, remedy: str) -> Any:
    """Return what `torch.save` wrote, with all tensors on the CPU.

    Raises:
        ValueError: the file is missing, not a regular file, truncated, foreign, or would execute code. Names `path`.
    """
    try:
        check_file(path, remedy)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual contents, which are checked below or by the caller
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a truncated or foreign file
        if isinstance(error, OSError) and str(path) in str(error):  # ours, or the system's
            raise ValueError(str(error)) from error
        raise ValueError(
            f"{path}: not a file of tensors and plain values: it is truncated, foreign, or would execute code "
            f"({type(error).__name__}); {remedy}"
        ) from error


def read_weights(path: Path, remedy: str) -> Any:
    """Return the weights in a file of safetensors, or of `torch.save`; of a training checkpoint, its `state_dict`.

    Raises:
        ValueError: as `read_tensors`.
        ModuleNotFoundError: safetensors is not installed.
    """
    if path.suffix == ".safetensors":
        with needs_extra("timm"):
            from safetensors.torch import load_file
        try:
            check_file(path, remedy)
        except OSError as error:
            raise ValueError(str(error)) from error
        with name_failures(path, "read", remedy):
            return load_file(path)
    values = read_tensors(path, remedy)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # as timm's training script saves them
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            return {name.removeprefix("module."): value for name, value in values[key].items()}
    return values


def as_state_dict(values: Any, source: Path | str) -> dict[str, Tensor]:
    """Check that `values` is a state dict, as torchvision saves them.

    Raises:
        ValueError: it is not, or a tensor cannot be a weight. Names `source`.
    """
    if not isinstance(values, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in values.items()):
        raise ValueError(f"{source}: expected a state dict of tensors, as torchvision saves them")
    if fault := unusable_tensor(values):
        raise ValueError(f"{source}: {fault}; get the weights again")
    return values


def unusable_tensor(weights: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with the first tensor that cannot be used as a weight; None if all can."""
    for name, tensor in weights.items():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            return f"{name} is not a plain array of numbers"
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} contains NaN or infinity"
    return None
