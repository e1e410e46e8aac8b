"""Select the torch device by name."""

from __future__ import annotations

import torch

from tinydet._internal.errors import reason


def torch_device(name: str | None) -> torch.device:
    """Return the device with this name after creating a tensor on it; None selects CUDA if available, else the CPU.

    A number, as in other tools, is that of a GPU: "0" is "cuda:0".

    Raises:
        ValueError: there is no such device, or torch cannot use it here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] in ("gpu", "nvidia"):
        raise ValueError(f"--device {name}: torch names devices cpu, cuda, cuda:1 or mps; did you mean cuda?")
    if "," in name:
        raise ValueError(f"--device {name}: one process uses one device; train on several GPUs with torchrun")
    try:
        device = torch.device(int(name) if name.isdecimal() else name)
        if device.type == "meta" or (device.type == "cpu" and device.index is not None):
            raise ValueError("it does not compute" if device.type == "meta" else "the CPU has no number")
        torch.empty(1, device=device)
    # torch raises an AssertionError if it was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        first = reason(error).partition(". ")[0]
        raise ValueError(f"--device {name}: torch cannot use it here ({first}); try --device cpu") from error
    return device
