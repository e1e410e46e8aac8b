"""The command `python -m tinydet.train`, run for real on a few small images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import exports
import pytest

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.models.checkpoint import load_checkpoint
from tinydet.salpha.factors import estimate_alpha
from tinydet.train.__main__ import main
from tinydet.train.provenance import code_state, data_hash

QUICK = ["--preset", "small", "--backbone", "tiny", "--weights-backbone", "none", "--channels", "16",
         "--head-convs", "1", "--epochs", "1", "--tile", "96", "--overlap", "32", "--precision", "fp32"]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_with_salpha_writes_a_model_whose_alpha_is_counted_from_the_boxes(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--salpha", "--data", str(squares), "--val", str(squares), *QUICK]) == 0
    checkpoint = load_checkpoint(here / "model.pth")
    assert checkpoint.statistics is not None
    counts = [checkpoint.statistics["counts"][level] for level in ("P2", "P3", "P4", "P5", "P6")]
    assert checkpoint.alpha == pytest.approx(estimate_alpha(counts), abs=1e-6)
    assert checkpoint.classes == ("square",) and checkpoint.category_ids == (3,)
    assert checkpoint.object_sizes == (12.0, 12.0, 12.0)
    assert list(here.glob("runs/model/2*/events*"))  # TensorBoard
    printed = capsys.readouterr().out
    assert "S-alpha" in printed and "wrote model.pth" in printed and "the last validation has the best AP50" in printed
    assert "next: tinydet evaluate --model model.pth\n" in printed


def test_alpha_given_by_hand_is_in_the_weights(here: Path, squares: Path) -> None:
    assert main(["--alpha", "0.37,0.39,0.5", "--data", str(squares), "--no-tensorboard", *QUICK]) == 0
    assert load_checkpoint(here / "model.pth").alpha == (0.37, 0.39, 0.5)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("fusion", ["one", "three", "channel", "attention"])
def test_a_learned_strategy_is_named_in_the_checkpoint_and_survives_it(here: Path, squares: Path, fusion: str) -> None:
    assert main(["--alpha", fusion, "--data", str(squares), "--no-tensorboard", *QUICK]) == 0
    checkpoint = load_checkpoint(here / "model.pth")
    assert checkpoint.detector.fusion == fusion and fusion in checkpoint.alpha_source
    assert len(checkpoint.alpha) == (0 if fusion == "attention" else 3)
    assert checkpoint.build().fpn.fusion == fusion


def test_learned_factors_can_start_at_what_was_counted(here: Path, squares: Path) -> None:
    flags = ["--salpha", "--alpha", "three", "--alpha-range", "0.3,0.9", "--lr", "1e-9"]
    assert main([*flags, "--data", str(squares), "--no-tensorboard", *QUICK]) == 0
    checkpoint = load_checkpoint(here / "model.pth")
    assert checkpoint.statistics is not None
    counts = [checkpoint.statistics["counts"][level] for level in ("P2", "P3", "P4", "P5", "P6")]
    assert checkpoint.alpha == pytest.approx(estimate_alpha(counts, (0.3, 0.9)), abs=1e-5)


def test_on_p3_to_p7_salpha_counts_with_its_anchors_and_gives_two_factors(here: Path, squares: Path) -> None:
    flags = ["--detector", "retinanet-p3p7", "--salpha"]
    assert main([*flags, "--data", str(squares), "--no-tensorboard", *QUICK]) == 0
    checkpoint = load_checkpoint(here / "model.pth")
    assert checkpoint.statistics is not None
    counts = checkpoint.statistics["counts"]
    assert list(counts) == ["P3", "P4", "P5", "P6+P7"]
    assert checkpoint.alpha == pytest.approx(estimate_alpha(list(counts.values())), abs=1e-6)
    assert len(checkpoint.alpha) == 2


def test_a_checkpoint_knows_the_data_and_the_code_that_it_came_from(here: Path, squares: Path) -> None:
    assert main(["--data", str(squares), "--no-tensorboard", *QUICK]) == 0
    origin = load_checkpoint(here / "model.pth").origin
    assert origin["data"] == data_hash(load_dataset(*find_dataset(squares))) and len(origin["data"]) == 64
    assert origin["code"] == code_state()


def test_options_reach_the_run(here: Path, squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dense", "4", "--augment", "scale,vflip,rotate,photometric", "--scale-match", str(squares)]
    flags += ["--ema", "0.9", "--decay", "cosine", "--group-shapes", "--norm", "group"]
    assert main([*flags, "--data", str(squares), "--no-tensorboard", *QUICK]) == 0
    checkpoint = load_checkpoint(here / "model.pth")
    assert checkpoint.detector.norm == "group"
    assert checkpoint.config["augment"] == ("scale", "vflip", "rotate", "photometric")


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--salpha", "--data", str(squares), "--detector", "retinanet", "--dry-run", *QUICK]) == 0
    printed = capsys.readouterr().out
    # squares: 96 x 96, the widest tile; the sum of the parts is the whole
    assert "2 steps, 4 tiles a step" in printed and "for a tile of 96x96" in printed
    assert "P2: every 4 px 9 anchors, sqrt(area) 8 to 12.7 px" in printed and "GiB per step" in printed
    assert list(here.iterdir()) == []


def test_scores_by_epoch_are_written_for_other_programs(here: Path, squares: Path) -> None:
    flags = [
        "--data",
        str(squares),
        "--val",
        str(squares),
        "--no-tensorboard",
        "--alpha",
        "1",
        *QUICK,
        "--json",
        "run.json",
    ]
    assert main(flags) == 0
    run = json.loads((here / "run.json").read_text())
    assert run["alpha"] == [1, 1, 1] and run["diverged"] is None
    assert [set(entry) for entry in run["history"]] == [{"epoch", "AP50", "AP50-95", "AP75", "AP50-tiny", "AP25-tiny"}]


def test_a_run_that_diverges_says_so_in_its_json(here: Path, squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(squares), "--no-tensorboard", *QUICK, "--json", "run.json", "--epochs", "3"]
    assert main([*flags, "--lr", "1e6", "--clip-norm", "0"]) == 2
    assert "no longer finite" in capsys.readouterr().err
    assert "no longer finite" in json.loads((here / "run.json").read_text())["diverged"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json", "."], "--json"),
        (["--data", "nowhere"], "nowhere"),
        (["--val", "nowhere"], "--val needs training data"),
        (["--salpha", "--alpha", "0.5"], "choose one"),
        (["--tile", "100"], "multiple of 32"),
        (["--alpha", "1,2"], "3 fused edges"),
        (["--alpha", "1,2,3", "--detector", "retinanet-p3p7"], "2 fused edges (P4->P3, P5->P4)"),
        (
            ["--detector", "faster_rcnn", "--head-convs", "2"],
            "--head-convs is not an option of faster_rcnn, but of retinanet",
        ),
        (["--roi-align", "aligned"], "--roi-align is not an option of retinanet, but of faster_rcnn"),
        (["--output", "."], "--output"),
        (["--categories", "unicorn", "--data", "SQUARES"], "unicorn"),
        (["--weights-backbone", "nowhere.pth", "--data", "SQUARES", "--preset", "small"], "nowhere.pth"),
        (["--data", "SQUARES", "--annotations", "x.json"], "either --data"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    here: Path, squares: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([flag.replace("SQUARES", str(squares)) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "flag", [["--alpha", "a"], ["--alpha", "1,2,3,4"], ["--alpha-range", "2,1"], ["--epochs", "0"], ["--lr", "-1"]]
)
def test_a_malformed_flag_says_what_it_takes(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(flag)
    assert stopped.value.code == 2
    assert "got" in capsys.readouterr().err


def test_a_corrupt_image_stops_the_run_and_is_named(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = here / "broken"
    shutil.copytree(squares, broken)
    (broken / "images" / "2.png").write_bytes(b"no image")
    assert main(["--data", str(broken), "--no-tensorboard", *QUICK]) == 2
    assert "2.png" in capsys.readouterr().err
    assert not (here / "model.pth").exists()
    assert main(["--data", str(broken), "--no-tensorboard", "--skip-unreadable", *QUICK]) == 0
    said, warned = capsys.readouterr()
    assert warned.count("2.png") == 1 and "skipped" in warned
    assert "2.png" in said.partition(" skipped:\n")[2]
    assert load_checkpoint(here / "model.pth").progress["step"] == 2


def test_a_split_val_of_the_data_is_validated_on_and_recorded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports.roboflow_yolo(here / "data")
    assert main(["--data", str(here / "data"), "--no-tensorboard", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "Ultralytics YOLO dataset, split train: " in printed and "Ultralytics YOLO dataset, split val: " in printed
    checkpoint = load_checkpoint(here / "model.pth")
    val = checkpoint.val_source(here / "model.pth")
    assert checkpoint.classes == exports.CLASSES and val is not None
    assert {image.file_name for image in val.load().images} == {f"{name}.png" for name in exports.TRUTH["val"]}


def test_a_held_out_share_is_printed_and_recorded(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(squares), "--val", "0.3", "--no-tensorboard", *QUICK]) == 0
    assert "2 of 7 images held out, chosen one by one" in capsys.readouterr().out
    checkpoint = load_checkpoint(here / "model.pth")
    sources = checkpoint.train_source(here / "model.pth"), checkpoint.val_source(here / "model.pth")
    train, val = ({image.file_name for image in source.load().images} for source in sources if source is not None)
    assert len(train) == 5 and len(val) == 2 and not train & val


def test_without_validation_data_a_share_to_hold_out_is_suggested(
    here: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(squares), "--dry-run", *QUICK]) == 0
    assert "--val 0.2" in capsys.readouterr().out
    for share in ("0", "1", "2.5"):
        with pytest.raises(SystemExit, match="2"):
            main(["--data", str(squares), "--val", share])
        assert "between 0 and 1" in capsys.readouterr().err
