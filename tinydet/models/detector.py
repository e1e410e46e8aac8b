"""The contract of a detector."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from tinydet.geometry.anchors import Pyramid
from tinydet.models.backbone import Backbone
from tinydet.models.batch import Batch
from tinydet.models.fpn import PlainFPN
from tinydet.models.options import TILE_MULTIPLE
from tinydet.spec import ModelSpec


class ForeignWeights(NamedTuple):
    """Weights of another code base under our names, with the number of class rows and the pyramid's first level."""

    weights: dict[str, Tensor]
    class_rows: int
    first_level: int


class Detector(nn.Module):
    """What training, the S-alpha statistic and the exporter need from any detector.

    A subclass is constructed as `build_detector` does: with the backbone's name, the number of classes and, by keyword,
    channels, alpha, fusion, norm and the options of its registry row.

    Attributes:
        backbone: gives C2..C5.
        fpn: the pyramid; `build_detector` and the exporter replace or fold its alpha.
        design: levels, strides and names of the fused edges; with anchors where the detector has them.
        pyramid_modules: names of the attributes that together compute the levels from C2..C5, for reports of cost.
        first_level: index of the first of C2..C5 that the pyramid takes.
        tile_multiple: of its registry row, set by `build_detector`; batches are padded to it.
        background: whether row 0 of the class layers is the background.
        own_tensors: beginnings of names of tensors that the weights of a detector of another kind do not initialize.
    """

    backbone: Backbone
    fpn: PlainFPN
    design: Pyramid
    tile_multiple: int = TILE_MULTIPLE
    pyramid_modules: ClassVar[tuple[str, ...]] = ("fpn",)
    first_level: ClassVar[int] = 0
    background: ClassVar[bool] = False
    own_tensors: ClassVar[tuple[str, ...]] = ()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of one batch as named scalars; their sum is minimized.

        Losses of a single pyramid level are named `NAME/LEVEL`. Under autocast only the network itself runs in reduced
        precision. Of several processes each returns its share, so that the sum over processes is the loss of the whole
        batch.
        """
        raise NotImplementedError

    def inference(self, spec: ModelSpec) -> nn.Module:
        """Return the module that is scored and exported, made of plain operators.

        Its input is (N, 3, H, W) normalized RGB, whose sides are multiples of `tile_multiple`. Anything that depends on
        them is computed from the shape of the input, not from `spec.tile`. Its outputs are boxes (N, K, 4) float32 xyxy
        in tile pixels, scores (N, K) descending, labels (N, K) int32 (-1 for an empty slot) and candidates (N,) int32,
        the boxes above `spec.score_floor` before the cut to K; with `spec.nms_rounds` also unconverged (N,) int32. It
        may take over modules of this detector, which is a copy made for the purpose, in eval mode, with alpha folded.

        Raises:
            ValueError: the spec does not suit the detector.
        """
        raise NotImplementedError

    def run_layers(self, images: Tensor) -> None:
        """Run every layer once on inputs shaped as in training (train mode) or inference (eval mode).

        Used to count multiply-adds and memory on the meta device, so shapes may not depend on values.
        """
        self(images)

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """Return the layers with rows per class: name -> (groups before, rows per class) of (before * C * rows, …)."""
        return {}

    @staticmethod
    def from_torchvision(weights: dict[str, Tensor]) -> ForeignWeights | None:
        """Convert the weights of torchvision's detector of this kind; None: they are those of another kind.

        Args:
            weights: under our names for backbone and pyramid.
        """
        return None
