from __future__ import annotations

import pytest
import torch

from tinydet.models.device import torch_device


def test_a_number_is_a_gpu() -> None:
    if torch.cuda.is_available():
        assert torch_device("0") == torch.device("cuda:0")
    else:
        with pytest.raises(ValueError, match="--device 0: torch cannot use it here"):
            torch_device("0")


def test_several_gpus_are_for_torchrun() -> None:
    with pytest.raises(ValueError, match="--device 0,1: one process uses one device; .* torchrun"):
        torch_device("0,1")
