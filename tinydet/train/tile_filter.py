"""`tinydet train --filter model.pth`: train a tile filter on the data of a detector, and calibrate it.

The held-out images choose the thresholds and nothing else: training runs for a fixed number of epochs, and the last
weights are kept.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tinydet._internal.atomic import atomic_path, claim
from tinydet._internal.console import plural
from tinydet._internal.progress import Bar
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import Dataset
from tinydet.data.domain import measure_domain
from tinydet.data.samples import Sample, epoch_batches, stream
from tinydet.data.source import DataSource
from tinydet.evaluate.tile_filter import CONFIDENCE, calibrated, measure_filter
from tinydet.models.backbone import PixelNorm
from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.device import torch_device
from tinydet.models.tensor_files import read_tensors
from tinydet.models.tile_filter import (
    STEEPNESS,
    FilterCheckpoint,
    TileFilterNetwork,
    TorchFilter,
    filter_spec,
    save_filter,
)
from tinydet.runtime.bundled import model_path
from tinydet.runtime.model_files import read_spec
from tinydet.runtime.tile_filter import CELL, describe, reduced
from tinydet.spec import FilterRecord, ModelSpec
from tinydet.train.config import TrainConfig
from tinydet.train.run import StoppedError, training_tiles
from tinydet.train.transforms import Augment

HELD_OUT = 0.2  # share of the images, if the detector has no validation images
VIEWS = 6_000  # training tiles in all epochs
EPOCHS = (8, 60)  # fewest and most
BATCH, RATE, DECAY = 8, 2e-3, 1e-3
AUGMENT = ("photometric", "gamma", "sharpness", "noise")
MOST_WEIGHT = 20.0  # of a cell with an object, against one without
FAMILIAR = 400  # training tiles to learn from what is familiar
# They are also familiar with so much of their contrast: water, sand and snow have little, and nothing to find.
SOFTENED = (1.0, 0.5, 0.1, 0.0)
FLOOR = 1e-6  # of scores, before the calibration
# Objects of this size (1st percentile, in pixels) are visible in tiles that are reduced by 2 and 4.
SIZES = {4: 16.0, 2: 4.0}

logger = logging.getLogger("tinydet.train")


@dataclass(frozen=True)
class TrainedFilter:
    """The result of training a tile filter.

    Attributes:
        output: the checkpoint.
        record: how well the filter keeps objects.
        seconds: duration, including earlier parts of a resumed run.
    """

    output: Path
    record: FilterRecord
    seconds: float


def train_filter(config: TrainConfig) -> TrainedFilter:
    """Train a tile filter for the detector that `config.filter` names.

    Raises:
        ValueError: the model or the data cannot be used.
        OSError: a file cannot be read or written.
        StoppedError: on Ctrl-C; the message says how to continue.
    """
    config = config.resolve()
    if config.threads:
        torch.set_num_threads(min(config.threads, os.cpu_count() or 1))
    with claim(config.filter_output):
        return _Run(config).run()


class _Run:
    """One training of a tile filter."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.filter is not None
        self._model = model_path(config.filter, ".pth")
        self._output = config.filter_output
        self._state = self._output.with_suffix(".state")
        self._device = torch_device(config.device)
        self._detector, sources, pixels, scales = _open_detector(self._model, config)
        self._sources = sources
        classes = self._detector.classes
        train, self._val = (source.load(categories=classes, allow_absent=True) for source in sources)
        for dataset, role in ((train, "train"), (self._val, "held-out")):
            if not dataset.objects.any():
                raise ValueError(f"{dataset.source}: no objects of {', '.join(classes)} among the {role} images")
        tile = config.tile or self._detector.tile
        sizes = _object_sizes(train)
        self._reduction = choose_reduction(tile, float(sizes[0]) * scales[0])
        overlap = min(128, tile // 2) if config.overlap is None else config.overlap
        self._config = dataclasses.replace(config, tile=tile, overlap=overlap, scales=scales)
        self._tiles = training_tiles(self._config, train)
        self._tiles.transform = Augment(AUGMENT if config.augment is None else config.augment, tile)
        self._train, self._tile = train, tile
        self._epochs = config.epochs or min(max(math.ceil(VIEWS / len(self._tiles)), EPOCHS[0]), EPOCHS[1])
        self._batch = config.batch or BATCH
        torch.manual_seed(config.seed)
        self._network = TileFilterNetwork(pixels).to(memory_format=torch.channels_last).to(self._device)
        self._pixels = pixels
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=config.lr or RATE, weight_decay=DECAY)
        self._done, self._seconds = 0, 0.0

    def run(self) -> TrainedFilter:
        logger.info(
            f"tile filter for {self._model} ({', '.join(self._detector.classes)}): tiles of {self._tile} pixels, "
            f"reduced by {self._reduction}"
        )
        logger.info(f"train     {plural(len(self._tiles), 'tile')}: {self._sources[0].describe()}")
        logger.info(f"held out  {plural(len(self._val.images), 'image')}: {self._sources[1].describe()}")
        if self._config.dry_run:
            logger.info(f"{plural(self._epochs, 'epoch')} in batches of {self._batch}; nothing was trained")
            return TrainedFilter(self._output, self._record((self._tile,)), 0.0)
        if self._config.resume:
            self._load_state()
        try:
            self._fit()
            record = self._finish()
        except KeyboardInterrupt as pressed:
            raise StoppedError(
                f"Interrupted after {self._done} of {plural(self._epochs, 'epoch')}. The same command with --resume "
                f"continues from {self._state}"
                if self._state.exists()
                else "Interrupted in the first epoch; nothing was kept"
            ) from pressed
        self._state.unlink(missing_ok=True)
        for line in _result_lines(record, self._output):
            logger.info(line)
        return TrainedFilter(self._output, record, round(self._seconds, 1))

    def _fit(self) -> None:
        steps = math.ceil(len(self._tiles) / self._batch)
        with Bar(self._epochs * steps, "step", "training") as bar:
            bar.update(self._done * steps)
            while self._done < self._epochs:
                self._network.train()
                seed, epoch = self._config.seed, self._done
                batches = epoch_batches(len(self._tiles), self._batch, seed=seed, epoch=epoch)
                began = time.monotonic()
                for step, samples in enumerate(stream(self._tiles, batches, seed=seed, epoch=epoch)):
                    self._step(samples, (epoch + step / steps) / self._epochs)
                    bar.update(1)
                self._seconds += time.monotonic() - began
                self._done = epoch + 1
                self._save_state()

    def _step(self, samples: Sequence[Sample], progress: float) -> None:
        """Take one step at a share `progress` of the training."""
        rate = (self._config.lr or RATE) * min(1.0, 0.05 + 20 * progress) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        prepared = [prepare(sample, self._tile, self._reduction) for sample in samples]
        images, targets = (np.stack(arrays) for arrays in zip(*prepared, strict=True))
        cells, _ = self._network(torch.from_numpy(images).to(self._device))
        loss = cell_loss(cells, torch.from_numpy(targets).to(self._device))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 10.0)
        self._optimizer.step()
        if not math.isfinite(float(loss.detach())):
            raise ValueError("the loss is no longer finite; train with a lower --lr")

    def _finish(self) -> FilterRecord:
        """Learn what is familiar, choose the thresholds, and write the checkpoint."""
        network = self._network.cpu().eval()
        network.fit_familiar(self._familiar(network))
        sides = [self._tile, self._tile // 2] if self._tile % (2 * self._reduction * CELL) == 0 else [self._tile]
        reduced_sides = [side // self._reduction for side in sides]
        # Before the calibration, all scores count.
        specs = [self._spec(self._record(tuple(sides)), side, score_floor=FLOOR) for side in reduced_sides]
        with Bar(len(self._val.images), "image", "calibrating") as bar:
            scores = measure_filter(
                [TorchFilter(network, spec) for spec in specs],
                self._val,
                reduction=self._reduction,
                scale=self._config.scales[0],
                progress=bar.update,
            )
        (value, limit), record = calibrated(scores, self._record(tuple(sides)))
        value, limit = (min(max(each, 2 * FLOOR), 1 - FLOOR) for each in (value, limit))
        network.calibrate(value, (limit / (1 - limit)) ** (1 / STEEPNESS))
        domain = measure_domain(self._train)
        domain = None if domain is None else dataclasses.replace(domain, class_sizes=())
        spec = self._spec(record, reduced_sides[0], domain=domain)
        folder = self._output.parent
        train, val = self._sources
        config = {
            "train_data": train.to_json(folder, self._train),
            "val_data": val.to_json(folder, self._val),
            "seed": self._config.seed,
            "epochs": self._epochs,
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_filter(FilterCheckpoint(weights, spec, config), self._output)
        return record

    def _familiar(self, network: TileFilterNetwork) -> Tensor:
        """Return the features of training tiles, with all of their detail and with little."""
        features = []
        count = len(self._tiles)
        self._tiles.transform = None
        with torch.inference_mode():
            for index in np.unique(np.linspace(0, count - 1, min(count, FAMILIAR)).round().astype(int)).tolist():
                pixels = self._tiles.sample(index, seed=0, epoch=0).pixels
                image = reduced(np.ascontiguousarray(pixels), self._tile, self._reduction)
                plain = np.broadcast_to(image.mean((0, 1)).astype(np.uint8), image.shape)
                images = np.stack([cv2.addWeighted(image, share, plain, 1 - share, 0) for share in SOFTENED])
                features.append(network(torch.from_numpy(images))[1])
        return torch.cat(features)

    def _record(self, tiles: tuple[int, ...]) -> FilterRecord:
        """Return the record before the calibration."""
        return FilterRecord(
            classes=self._detector.classes,
            tiles=tiles,
            scale=self._config.scales[0],
            reduction=self._reduction,
            recall=self._config.filter_recall,
            bound=0.0,
            confidence=CONFIDENCE,
            objects=0,
            missed=0,
            held_out=0,
            skipped=0,
            unfamiliar=0,
            false_alarm=0.0,
            source=self._sources[1].describe(),
        )

    def _spec(self, record: FilterRecord, side: int, **changes: Any) -> ModelSpec:
        return filter_spec(record, side, pad=self._pixels.pad, stretch=self._detector.stretch, **changes)

    def _save_state(self) -> None:
        state = {
            "identity": self._identity(),
            "done": self._done,
            "seconds": self._seconds,
            "weights": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        with atomic_path(self._state) as temporary:
            torch.save(state, temporary)

    def _load_state(self) -> None:
        remedy = "start again without --resume"
        if not self._state.exists():
            raise ValueError(f"{self._state}: no state to resume from; {remedy}")
        state = read_tensors(self._state, remedy)
        if not isinstance(state, dict) or state.get("identity") != self._identity():
            raise ValueError(f"{self._state} belongs to a run with other options or data; {remedy}")
        self._network.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._done, self._seconds = int(state["done"]), float(state["seconds"])

    def _identity(self) -> list[Any]:
        """Return what the weights depend on."""
        config = self._config
        values = [self._tile, self._reduction, list(config.scales), self._epochs, self._batch, config.lr, config.seed]
        return [*values, list(config.augment or ()), config.flip, len(self._tiles), list(self._detector.classes)]


def choose_reduction(tile: int, smallest: float) -> int:
    """Return the factor by which tiles are reduced for a filter.

    Args:
        smallest: side of the smallest objects, in pixels of the detector's input.

    >>> choose_reduction(640, 8.0), choose_reduction(640, 2.5), choose_reduction(640, 30.0), choose_reduction(96, 30.0)
    (2, 1, 4, 2)
    """
    fits = (factor for factor, size in SIZES.items() if smallest >= size and tile % (factor * CELL) == 0)
    return next(fits, 1)


def prepare(sample: Sample, tile: int, reduction: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a training tile as the filter sees it, and what its cells hold.

    Returns:
        (T, T, 3), and (T / CELL, T / CELL): 1 for a cell with the center of an object, 0 for one without any part of
        an object, -1 for one to ignore: it has a part of an object, an ignore region, or no content.
    """
    image = reduced(np.ascontiguousarray(sample.pixels), tile, reduction)
    side = CELL * reduction
    cells = np.zeros((tile // side, tile // side), np.float32)
    height, width = sample.pixels.shape[:2]
    cells[-(-height // side) :], cells[:, -(-width // side) :] = -1, -1
    for x1, y1, x2, y2 in np.concatenate([sample.boxes, sample.regions]) / side:
        cells[_span(y1, y2), _span(x1, x2)] = -1
    for x1, y1, x2, y2 in sample.boxes / side:
        row, column = (min(int(center), len(cells) - 1) for center in ((y1 + y2) / 2, (x1 + x2) / 2))
        cells[row, column] = 1
    return image, cells


def cell_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of cells (N, R, C) against the targets of `prepare`, balanced, as a scalar."""
    positive, negative = (targets == 1).float(), (targets == 0).float()
    weight = (negative.sum() / positive.sum().clamp(min=1)).clamp(1.0, MOST_WEIGHT)
    weights = weight * positive + negative
    losses = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (weights * losses).sum() / weights.sum().clamp(min=1)


def _span(low: float, high: float) -> slice:
    return slice(max(math.floor(low), 0), max(math.ceil(high), 0))


def _object_sizes(dataset: Dataset) -> NDArray[np.float64]:
    boxes = dataset.boxes[dataset.objects]
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1) ** 0.5
    return np.asarray(np.percentile(sides, (1, 50, 99)))


def _open_detector(
    model: Path, config: TrainConfig
) -> tuple[ModelSpec, tuple[DataSource, DataSource], PixelNorm, tuple[float, ...]]:
    """Return the spec of a detector, the data to train and to calibrate on, its pixels and the scales of its images.

    Raises:
        ValueError: the model or its data cannot be used.
    """
    pixels, scales = PixelNorm(), config.scales
    train: DataSource | None = None
    val: DataSource | None = None
    if model.suffix in (".pth", ".pt"):
        checkpoint = load_checkpoint(model)
        spec, pixels = checkpoint.spec(), checkpoint.pixels
        stored = checkpoint.config.get("scales")
        if scales == (1.0,) and isinstance(stored, list | tuple) and stored:
            scales = tuple(float(each) for each in stored)
        if config.built_in:
            train, val = checkpoint.train_source(model), checkpoint.val_source(model)
    else:
        spec = read_spec(model)
        pixels = PixelNorm() if spec.pad == PixelNorm().pad else pixels
    if spec.tile_filter is not None:
        raise ValueError(f"{model} is a tile filter itself; name the detector that it is for")
    if not config.built_in:
        train, val = config.sources()
    if train is None:
        again = tinydet_command("train", "--filter", config.filter or model, "--data", "my/train", "--val", "my/val")
        raise ValueError(f"{model} does not say where its training data are; name them: {again}")
    if val is None:
        train, val = train.hold_out(HELD_OUT, config.val_seed, group_by=config.group_by)
    return spec, (train, val), pixels, scales


def _result_lines(record: FilterRecord, output: Path) -> Iterator[str]:
    if record.bound < record.recall:
        needed = math.ceil(math.log(1 - record.confidence) / math.log(record.recall)) if record.recall < 1 else 0
        more = f"; {plural(needed, 'object')} are needed for {100 * record.recall:g} %" if needed else ""
        logger.warning(
            f"{plural(record.objects, 'held-out object')} can prove a recall of {100 * record.bound:.2f} % only{more}"
        )
    yield f"calibrated: {describe(record)}"
    yield (
        f"  skips {record.skipped} of {plural(record.held_out, 'held-out tile')} of {record.tiles[0]} pixels; "
        f"{record.unfamiliar} are unfamiliar"
    )
    yield f"wrote {output}; export it: {tinydet_command('export', 'onnx', output)}"
