"""Defaults that depend on the device, the size of the data and the weights of --init."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.options import Architecture
from tinydet.models.pretrained import read_source
from tinydet.models.registry import detector_options
from tinydet.spec import ModelSpec
from tinydet.train import TrainConfig, train
from tinydet.train.config import PRESETS, SMALL_AUGMENT, config_of
from tinydet.train.defaults import MOST_EPOCHS, choose_network, choose_schedule, epochs_of
from tinydet.train.validation import Validation

OLD = Architecture("faster_rcnn", "mobilenet_v2", 32, {"straddling": True}, tile=96, overlap=32, preset="small")


def chosen(
    *flags: str, data: Path | None = None, device: str = "cpu", tiles: int = 27, start: Architecture | None = None
) -> tuple[TrainConfig, str]:
    """Return the complete configuration of a command, and the reasons that it prints."""
    given = config_of([*(["--data", str(data)] if data else []), *flags]).resolve()
    config, network = choose_network(given, device=device, start=start)
    config, schedule = choose_schedule(config, given, tiles)
    return config, "\n".join([*network, *schedule])


@pytest.mark.parametrize(("device", "preset"), [("cpu", "small"), ("cuda", "paper"), ("mps", "paper")])
def test_the_device_chooses_the_preset_and_the_reason_names_the_other_one(
    squares: Path, device: str, preset: str
) -> None:
    config, reasons = chosen(data=squares, device=device)
    assert config.preset == preset
    for name in ("backbone", "channels", "batch", "clip_norm"):
        assert getattr(config, name) == PRESETS[preset][name]
    other = {"small": "paper", "paper": "small"}[preset]
    assert f"preset {preset}: " in reasons and f"--preset {other}" in reasons
    config, reasons = chosen("--preset", other, data=squares, device=device)
    assert config.preset == other and f"preset {other}: " not in reasons


@pytest.mark.parametrize(("preset", "channels", "convs"), [("small", 64, 2), ("nano", 32, 1)])
def test_a_thin_preset_is_fcos_by_nwd_rank_unless_another_detector_is_given(
    squares: Path, preset: str, channels: int, convs: int
) -> None:
    config, _ = chosen("--preset", preset, "--alpha", "0.5", data=squares)
    assert (config.detector, config.channels, config.given_alpha) == ("fcos", channels, (0.5, 0.5, 0.5))
    recommended = {"head_convs": convs, "head_init": "he", "assign": "nwd", "assign_rank": 3}
    assert config.options.items() >= recommended.items()
    other, _ = chosen("--preset", preset, "--detector", "retinanet", data=squares)
    assert (other.detector, other.options["assign"], other.options["assign_rank"]) == ("retinanet", "iou", 0)
    with pytest.raises(ValueError, match="fcos has 3 fused edges"):
        config_of(["--preset", preset, "--alpha", "0.5,0.4"]).resolve()
    start = Architecture("faster_rcnn", "mobilenet_v2", 48, {"straddling": True})
    from_weights, reasons = chosen("--preset", preset, "--init", "old.pth", data=squares, start=start)
    assert (from_weights.detector, from_weights.channels) == ("fcos", channels)
    assert f"detector fcos instead of faster_rcnn, channels {channels} instead of 48" in reasons


def test_s_alpha_is_part_of_a_thin_preset_as_it_is(squares: Path) -> None:
    config, reasons = chosen(data=squares)
    assert config.salpha and "S-alpha: part of the preset small (--alpha 1 switches it off)" in reasons
    for flags in (("--alpha", "1"), ("--alpha", "three"), ("--detector", "fcos"), ("--assign", "points"),
                  ("--sigma-power", "0.5"), ("--preset", "paper"), ("--init", "old.pth")):  # fmt: skip
        other, reasons = chosen(*flags, data=squares, start=OLD if "--init" in flags else None)
        assert not other.salpha and "S-alpha" not in reasons
    given, reasons = chosen("--salpha", data=squares)
    assert given.salpha and "S-alpha" not in reasons


def test_weights_as_wide_as_the_preset_keep_their_detector(squares: Path) -> None:
    start = Architecture("retinanet", "mobilenet_v2", 64, {"assign": "dotd", "assign_rank": 2})
    for flags, channels in (((), 64), (("--channels", "48"), 48)):
        started = dataclasses.replace(start, channels=channels)
        config, _ = chosen("--preset", "small", *flags, "--init", "old.pth", data=squares, start=started)
        assert (config.detector, config.options["assign"], config.options["assign_rank"]) == ("retinanet", "dotd", 2)


def test_an_assignment_that_is_given_takes_nothing_from_the_preset(squares: Path) -> None:
    points, _ = chosen("--assign", "points", data=squares)
    assert (points.detector, points.options["assign"], points.options["assign_rank"]) == ("fcos", "points", 0)
    ranked, _ = chosen("--assign-rank", "5", data=squares)
    assert (ranked.options["assign"], ranked.options["assign_rank"]) == ("nwd", 5)
    published, _ = chosen("--detector", "fcos", data=squares, device="cuda")
    assert published.options["assign"] == "points"
    with pytest.raises(ValueError, match="--assign iou needs the number of points"):
        chosen("--assign", "iou", data=squares)


def test_fewer_tiles_never_get_fewer_epochs_and_large_datasets_get_those_of_the_paper() -> None:
    epochs = [epochs_of(tiles) for tiles in range(1, 1000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] == MOST_EPOCHS and epochs[-1] == epochs_of(10**6) == 12


def test_a_small_dataset_gets_more_epochs_and_augmentation_and_says_so(squares: Path) -> None:
    config, reasons = chosen(data=squares)
    assert config.epochs == epochs_of(27) > 12 and config.augment == SMALL_AUGMENT
    assert "instead of 12" in reasons and "--epochs" in reasons and "--augment none" in reasons
    large, reasons = chosen(data=squares, tiles=5000)
    assert (large.epochs, large.augment) == (12, ()) and "epochs" not in reasons and "augment" not in reasons


def test_what_is_given_wins(squares: Path) -> None:
    config, reasons = chosen("--epochs", "3", "--augment", "vflip", data=squares)
    assert (config.epochs, config.augment) == (3, ("vflip",)) and "epochs" not in reasons and "augment" not in reasons
    assert chosen("--augment", "none", data=squares)[0].augment == ()


@pytest.mark.parametrize("flags", [("--preset", "paper"), ("--recipe", "tinyperson")])
def test_the_authors_recipe_does_not_depend_on_device_and_data(squares: Path, flags: tuple[str, ...]) -> None:
    for device in ("cpu", "cuda"):
        for tiles in (3, 5000):
            config, _ = chosen(*flags, data=squares, device=device, tiles=tiles)
            assert {name: getattr(config, name) for name in PRESETS["paper"]} == PRESETS["paper"]
            assert (config.epochs, config.augment, config.tile, config.overlap) == (12, (), 640, 128)
            assert config.validate_every == 2


def test_the_built_in_dataset_keeps_its_schedule() -> None:
    config, _ = chosen(tiles=20, device="cuda")
    assert (config.preset, config.epochs, config.augment) == ("small", 12, ())


def test_init_brings_its_network_and_its_tile(squares: Path) -> None:
    config, reasons = chosen("--init", "old.pth", data=squares, device="cuda", start=OLD)
    assert (config.detector, config.backbone, config.channels) == ("faster_rcnn", "mobilenet_v2", 32)
    assert config.options["straddling"] is True and (config.tile, config.overlap) == (96, 32)
    assert config.preset == "small" and config.weights_backbone == "none"
    assert "from old.pth: detector faster_rcnn, backbone mobilenet_v2, channels 32, tile 96, straddling True" in reasons


def test_options_that_are_given_win_over_those_of_init(squares: Path) -> None:
    flags = ("--init", "old.pth", "--detector", "retinanet", "--channels", "64", "--tile", "320", "--head-convs", "1")
    config, reasons = chosen(*flags, data=squares, start=OLD)
    assert (config.detector, config.channels, config.tile, config.overlap) == ("retinanet", 64, 320, 128)
    assert config.options.items() >= {"head_convs": 1, "head_init": "he"}.items()
    assert "as given: detector retinanet instead of faster_rcnn, channels 64 instead of 32" in reasons


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "libra_rcnn"])
def test_another_similarity_does_not_inherit_rank_and_threshold_of_init(squares: Path, detector: str) -> None:
    options = {**detector_options(detector, {"assign": "nwd", "assign_rank": 3, "assign_background": 0.9})}
    start = Architecture(detector, "mobilenet_v2", 32, options)
    config, _ = chosen("--init", "old.pth", data=squares, start=start)
    assert config.options == options
    default = detector_options(detector, {})
    config, _ = chosen("--init", "old.pth", "--assign", default["assign"], data=squares, start=start)
    assert config.options == default | {name: config.options[name] for name in default if "head" in name}


def test_the_options_of_another_detector_are_not_said_to_be_those_of_init(squares: Path) -> None:
    start = Architecture("fcos", "mobilenet_v2", 32, detector_options("fcos", {}))
    _, reasons = chosen("--init", "old.pth", "--detector", "fcos-p3p7", data=squares, start=start)
    assert "assign" not in reasons and "detector fcos-p3p7 instead of fcos" in reasons


def test_an_option_without_a_value_is_not_listed(squares: Path) -> None:
    start = dataclasses.replace(OLD, options={"assign": "nwd", "assign_rank": 2, "assign_background": None})
    _, kept = chosen("--init", "old.pth", data=squares, start=start)
    assert "assign nwd, assign_rank 2" in kept and "None" not in kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--backbone", "resnet18"), "--backbone resnet18: the weights of --init old.pth are of mobilenet_v2"),
        (("--preset", "paper"), "--preset paper is resnet50, and the weights of --init old.pth are of mobilenet_v2"),
        (("--head-convs", "2"), "faster_rcnn"),
        (("--alpha", "0.1,0.2"), "faster_rcnn has 3 fused edges"),
    ],
)
def test_a_contradiction_with_init_is_one_line(squares: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        chosen("--init", "old.pth", *flags, data=squares, start=OLD)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tile", [64, 96, 256, 640])
def test_the_default_overlap_fits_every_tile(squares: Path, tile: int) -> None:
    config, _ = chosen("--tile", str(tile), data=squares)
    assert config.overlap == min(128, tile // 2)


def test_torchvision_weights_are_recognized_as_a_network(tmp_path: Path) -> None:
    from torchvision.models import detection

    path = tmp_path / "weights.pth"
    with torch.device("meta"):
        shapes = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}, path)
    found = read_source(str(path), "retinanet").architecture
    assert found is not None and (found.detector, found.backbone, found.channels) == ("faster_rcnn", "resnet50", 256)


def test_a_run_from_a_checkpoint_needs_no_options(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = DetectorConfig("tiny", 8, "batch", 1, options={"head_convs": 1, "head_init": "he"})
    old = Checkpoint(network, build_detector(network, (0.5, 0.4, 0.3)).state_dict(), ("square",), (3,), tile=96)
    save_checkpoint(old, tmp_path / "old.pth")
    output = tmp_path / "new.pth"
    with caplog.at_level("INFO", "tinydet.train"):
        train(TrainConfig(data=squares, init=str(tmp_path / "old.pth"), epochs=1, tensorboard=False, output=output))
    new = load_checkpoint(output)
    assert new.detector == network and new.tile == 96
    wanted = "old.pth: detector retinanet, backbone tiny, channels 8, tile 96"
    assert any(wanted in line for line in caplog.messages)


def test_the_weights_that_a_run_starts_from_are_scored_and_kept_if_no_epoch_is_better(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = DetectorConfig("tiny", 8, "batch", 1, options={"head_convs": 1, "head_init": "he"})
    weights = build_detector(network, (1.0, 1.0, 1.0)).state_dict()
    save_checkpoint(Checkpoint(network, weights, ("square",), (3,), tile=96), tmp_path / "old.pth")
    scores = iter([0.5, 0.2, 0.4])
    score = Validation.__call__

    def scored(self: Validation, detector: Detector, spec: ModelSpec) -> dict[str, float]:
        return {**score(self, detector, spec), "AP50": next(scores)}

    monkeypatch.setattr(Validation, "__call__", scored)
    run = TrainConfig(
        data=squares, val=squares, init=str(tmp_path / "old.pth"), epochs=2, validate_every=1, tensorboard=False,
        output=tmp_path / "new.pth",
    )  # fmt: skip
    with caplog.at_level("INFO", "tinydet.train"):
        trained = train(run)
    assert [(entry["epoch"], entry["AP50"]) for entry in trained.history] == [(0, 0.5), (1, 0.2), (2, 0.4)]
    kept = load_checkpoint(tmp_path / "new.pth").weights
    assert all(torch.equal(kept[name], value) for name, value in weights.items() if not name.startswith("fpn.alpha"))
    assert "on the validation set, before the first step, percent:" in caplog.messages
    assert any("training did not improve their AP50, epoch 2 has 40.00" in line for line in caplog.messages)
