"""The parser of every command: positional words, names of other tools, one line for every mistake, a readable help."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinydet._internal.arguments import share, side
from tinydet._internal.parser import Parser

PAIRS = "options are written --NAME VALUE, not NAME=VALUE; run: tinydet"


def infer() -> Parser:
    parser = Parser("infer", positional="--image", examples=("scene.jpg", "flight/ --score 0.2"), needs_arguments=True)
    parser.add_argument("--image", nargs="+", action="extend", metavar="SCENE")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--image-id", type=int, default=1)
    parser.add_argument("--score", type=share, default=0.3)
    parser.add_argument("--tile", type=side)
    parser.add_argument("--format", choices=("coco", "geojson", "csv"))
    parser.add_argument("--agnostic", action="store_true")
    return parser


def export() -> Parser:
    parser = Parser("export onnx")
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path)
    return parser


@pytest.mark.parametrize(
    "words",
    [
        "a.tif b.tif --score 0.5 --agnostic",
        "--score 0.5 a.tif b.tif --agnostic",
        "--agnostic --score 0.5 a.tif b.tif",
        "a.tif --score 0.5 b.tif --agnostic",
        "--score=0.5 a.tif --agnostic b.tif",
        "--score 0.5 --agnostic -- a.tif b.tif",
        "--image a.tif b.tif --score 0.5 --agnostic",
        "--source a.tif b.tif --conf 0.5 --agnostic-nms",
        "--source a.tif b.tif --conf_thres=0.5 --agnos",
        "--image a.tif --source b.tif --score 0.5 --agnostic",
        "a.tif b.tif --confidence 0.5 --AGNOSTIC",
    ],
)
def test_every_order_and_spelling_is_the_same_command(words: str) -> None:
    expected = infer().parse_args(["--image", "a.tif", "b.tif", "--score", "0.5", "--agnostic"])
    assert vars(infer().parse_args(words.split())) == vars(expected)


def test_words_behind_two_dashes_are_inputs_whatever_they_look_like() -> None:
    assert infer().parse_args(["--", "-5.tif", "--score"]).image == ["-5.tif", "--score"]
    assert export().parse_args(["--output", "x", "--", "-m.pth"]).model == Path("-m.pth")


@pytest.mark.parametrize(
    "words", ["m.pth --output x", "--output x m.pth", "--model m.pth --output x", "--model=m.pth -o x"]
)
def test_a_positional_argument_is_also_an_option(words: str) -> None:
    assert vars(export().parse_args(words.split())) == {"model": Path("m.pth"), "output": Path("x")}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("a.tif --scroe 0.5", "unknown option --scroe; did you mean --score?"),
        ("--scroe 0.5 a.tif", "unknown option --scroe; did you mean --score?"),
        ("a.tif --scroe=0.5", "unknown option --scroe; did you mean --score?"),
        ("a.tif --nope", "unknown option --nope; `tinydet infer --help` lists all options"),
        ("a.tif -q", "unknown option -q; `tinydet infer --help` lists all options"),
        ("a.tif --ima b", "--ima is short for --image, --images or --image-id; write out which one"),
        ("a.tif --image b.tif", "'a.tif' and --image name the same input; give it once"),
        ("a.tif --format geojsn", "argument --format: expected one of coco, geojson, csv; got 'geojsn'; did you mean "
         "geojson?"),
        ("a.tif --format xml", "argument --format: expected one of coco, geojson, csv; got 'xml'"),
        ("a.tif --score high", "argument --score: expected a number from 0 to 1, got 'high'"),
        ("a.tif --score 30%", "argument --score: expected a number from 0 to 1, got '30%'; did you mean 0.3?"),
        ("a.tif --tile 640px", "argument --tile: expected a whole number of pixels from 1 to 1 000 000, got '640px'; "
         "did you mean 640?"),
        ("a.tif --score", "--score needs a value, as in --score SCORE"),
        ("a.tif --score --tile 64", "--score needs a value, as in --score SCORE"),
        ("--image", "--image needs a value, as in --image SCENE"),
        ("a.tif --images=", "--images: the value is empty; name a file or a folder"),
        ("a.tif --agnostic True", "--agnostic takes no value; leave out 'True'"),
        ("a.tif --agnostic_nms=True", "--agnostic takes no value; leave out 'True'"),
        ("a.tif --agnostic=false", "--agnostic takes no value; leave it out"),
        ("a.tif —score 0.5", "'—score' starts with a typographic dash, as word processors write it; did you mean "
         "--score?"),
        ("a.tif –scroe=0.5", "'–scroe' starts with a typographic dash, as word processors write it; did you mean "
         "--score?"),
        ("a.tif score 0.5", "'score' does not exist; did you mean --score?"),
        ("source=a.jpg conf=0.5", f"{PAIRS} infer a.jpg --score 0.5"),
        ("a.jpg imgsz=640 agnostic_nms=True", f"{PAIRS} infer a.jpg --tile 640 --agnostic"),
        ("source=a.jpg scroe=1", f"{PAIRS} infer a.jpg --scroe 1"),
        ("a.jpg agnostic_nms=False", f"{PAIRS} infer a.jpg"),
        ("a.jpg images=True tile=64", f"{PAIRS} infer a.jpg --images images --tile 64"),
        ("a.jpg images=False conf=0.5", f"{PAIRS} infer a.jpg --score 0.5"),
        ("a.jpg conf=0.5 exist_ok=True", f"{PAIRS} infer a.jpg --score 0.5 (without exist_ok: older results are "
         "overwritten, but never a folder with other files; leave it out)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        infer().parse_args(words.split())
    assert capsys.readouterr() == ("", f"tinydet infer: error: {line}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "missing: model; `tinydet export onnx --help` explains the command"),
        ("a.pth b.pth", "unexpected argument 'b.pth'; the command takes one MODEL"),
        ("--model a.pth b.pth", "unexpected argument 'b.pth'; the command takes one MODEL"),
        (
            "model=a.pth out=b",
            f"{PAIRS} export onnx a.pth --output b",
        ),
    ],
)
def test_a_mistake_with_a_positional_argument_is_one_line(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        export().parse_args(words.split())
    assert capsys.readouterr() == ("", f"tinydet export onnx: error: {line}\n")


def test_an_option_of_other_tools_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a.tif", "--iou", "0.5"], ["a.tif", "--iou-thres=0.5"], ["iou=0.5", "a.tif"]):
        with pytest.raises(SystemExit, match="2"):
            infer().parse_args(words)
        shown = capsys.readouterr().err
        assert "boxes of one class that overlap are merged" in shown and shown.count("\n") == 1


def test_a_required_input_needs_no_option_either(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("seamtest", positional="--image")
    parser.add_argument("--image", type=Path, required=True, metavar="SCENE")
    for words in (["a.tif"], ["--image", "a.tif"], ["--", "a.tif"]):
        assert parser.parse_args(words).image == Path("a.tif")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([])
    assert capsys.readouterr().err == (
        "tinydet seamtest: error: missing: SCENE; `tinydet seamtest --help` explains the command\n"
    )


def test_resume_takes_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("train", positional="--data")
    parser.add_argument("--data")
    parser.add_argument("--resume", action="store_true")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--resume", "model.pth"])
    assert "--resume takes no file" in capsys.readouterr().err


def test_help_is_a_word_and_a_home_folder_is_expanded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        infer().parse_args(["help"])
    assert "examples:" in capsys.readouterr().out
    monkeypatch.setenv("HOME", "/home/me")
    assert infer().parse_args(["~/a.tif", "--images=~/b"]).image == ["/home/me/a.tif"]
    assert infer().parse_args(["a.tif", "--images=~/b"]).images == Path("/home/me/b")
    assert export().parse_args(["~/m.pth"]).model == Path("/home/me/m.pth")


def test_a_file_with_an_equals_sign_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf=0.3").touch()
    assert infer().parse_args(["conf=0.3"]).image == ["conf=0.3"]
    assert infer().parse_args(["--images", "source=1", "a"]).images == Path("source=1")


def test_without_arguments_a_command_shows_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        infer().parse_args([])
    shown = capsys.readouterr().err
    assert shown.startswith("usage: tinydet infer [SCENE ...] [OPTIONS]\n")
    assert "\n  tinydet infer flight/ --score 0.2\n" in shown
    assert len(shown.splitlines()) < 10


def test_what_one_parser_leaves_another_takes() -> None:
    first = Parser("sweep", positional="--data", allow_abbrev=False)
    first.add_argument("--data")
    first.add_argument("--seeds", type=int)
    args, left = first.parse_known_args(["my/train", "--seeds", "3", "--seed", "1", "--bs", "2"])
    assert (args.data, args.seeds, left) == ("my/train", 3, ["--seed", "1", "--bs", "2"])
    second = Parser("train")
    second.add_argument("--seed", type=int)
    second.add_argument("--batch", type=int)
    second.speak_for(first)
    assert vars(second.parse_args(left)) == {"seed": 1, "batch": 2}


@pytest.mark.parametrize("words", [["seedz"], ["--sedes", "3"]])
def test_the_second_parser_speaks_for_the_first(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Parser("sweep"), Parser("train")
    first.add_argument("--seeds")
    second.speak_for(first)
    with pytest.raises(SystemExit, match="2"):
        second.parse_args(words)
    shown = capsys.readouterr().err
    assert shown.startswith("tinydet sweep: error: ") and ("did you mean --seeds?" in shown or words == ["seedz"])


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_has_examples_before_options_and_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = infer()
    parser.examples = ("scene.jpg", f"'two words' --format csv --tile 640 {'--agnostic ' * 9}".strip())
    parser.description = "Detect objects. " * 20
    parser.epilog = "formats:\n  coco     " + "many words " * 20 + "\n\n" + "A paragraph. " * 20
    text = parser.format_help()
    assert text.index("examples:") < text.index("--image SCENE") < text.index("--help") < text.index("formats:")
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns - 2
    row = lines.index(next(line for line in lines if line.startswith("  coco ")))
    assert len(lines[row + 1]) - len(lines[row + 1].lstrip()) == len("  coco     ")


@pytest.mark.parametrize("columns", [20, 40, 80, 1000])
def test_a_broken_example_is_the_same_command(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = infer()
    parser.examples = ("'two words.tif' b.tif --format csv --tile 640 --agnostic --score 0.2 --images x",)
    shown = parser.format_help().partition("example:\n")[2].partition("\n\n")[0]
    assert shlex.split(shown.replace("\\\n", "")) == ["tinydet", "infer", *shlex.split(parser.examples[0])]


STARTS = """
import sys
from tinydet.__main__ import main
for words in sys.argv[1:]:
    try: main(words.split())
    except SystemExit: pass
    print(words, sorted({"torch", "onnxruntime", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""


def test_the_help_is_quick_because_it_imports_little() -> None:
    helps = ["train -h", "evaluate --help", "infer -h", "data check -h", "export engine -h", "sweep -h"]
    done = subprocess.run([sys.executable, "-c", STARTS, *helps], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{words} []" for words in helps]
