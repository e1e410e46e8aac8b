"""Class names are taken as written, from YAML and from text, and nothing in a YAML file is executed or expanded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinydet.data.readers.class_names import read_class_names, read_data_file

WORDS = ["on", "off", "yes", "no", "y", "n", "true", "False", "null", "~", "1", "1e3", "0x10", "017", ".inf", "=", "é"]
WORDS += ["2024-01-01", "12:30:45"]


@pytest.mark.parametrize(
    "text",
    [
        f"names: [{', '.join(WORDS)}]\n",
        "names:\n" + "".join(f"- {word}\n" for word in WORDS),
        "names:\n" + "".join(f"  {n}: {word}\n" for n, word in enumerate(WORDS)),
        "names:\n" + "".join(f'  "{n}": "{word}"\n' for n, word in reversed(list(enumerate(WORDS)))),
        f"path: ../x\ntrain: images # relative\nval: !!str off\nnc: {len(WORDS)}\nnames: &all [{', '.join(WORDS)}]\n"
        "other: *all\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_in_yaml_are_text_as_written(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text, encoding=encoding)
    assert read_class_names(path) == WORDS


def test_names_in_a_text_file_are_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\r\n".join([*WORDS, "car, parked ", "", ""]).encode("utf-8-sig"))
    assert read_class_names(path) == [*WORDS, "car, parked"]


@pytest.mark.parametrize("value", ["", "~", "null", "Null", "NULL"])
def test_a_key_without_a_value_says_nothing(tmp_path: Path, value: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f"names: [a, b]\nnc: {value}\nkpt_shape: {value}\n")
    assert read_data_file(path).names == ["a", "b"] and read_data_file(path).keypoints is None


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "names: !!python/object/apply:os.system [false]", "line 1: the tag .*os.system' is not allowed"),
        ("data.yaml", "path: !mine x\nnames: [a]", "line 1: the tag '!mine' is not allowed; remove it"),
        ("data.yaml", f"{BOMB}names: *a29\n", "data.yaml: expected names: "),
        ("data.yaml", "names: &a [*a]", "line 1: a part that contains itself"),
        ("data.yaml", "[" * 3000, "not YAML .nested too deeply"),
        ("data.yaml", "path: x\n\tnames: [a]", "line 2: not YAML"),
        ("data.yaml", "names: [a]\nnames: [b]", "line 2: 'names' occurs twice; remove one"),
        ("data.yaml", "? [a, b]\n: c", "line 1: a key that is not text"),
        ("data.yaml", "- a\n- b", "not a mapping"),
        ("data.yaml", "", "not a mapping"),
        ("data.yaml", "names: {0: a, 2: b}", "class '2' of 2 has a name, but class 1 has none"),
        ("data.yaml", "names: {on: a}", "class 'on' of 1 has a name, but class 0 has none"),
        ("data.yaml", "names: [a, [b]]", "expected names: "),
        ("data.yaml", "names: [a, '']", "the name of class 1 is empty"),
        ("data.yaml", "names: [a, b, a]", "'a' is listed twice"),
        ("data.yaml", "names: [a]\nnc: 80", "nc is 80, but there are 1 names"),
        ("data.yaml", "names: [a]\nkpt_shape: [3, 4]", r"kpt_shape is \[3, 4\]; expected \[keypoints, 2\]"),
        ("data.yaml", "names: [a]\nkpt_shape: [3, 2]\ntask: obb", "keypoints, but the task is obb"),
        ("data.yaml", "x" * (1 << 20) + "y", "characters; a description of a dataset has at most"),
        ("data.yaml", "names: [a\0]", "not YAML"),
        ("classes.txt", "a\n\nb\n", "classes.txt line 2: an empty line"),
        ("classes.txt", "\n\n", "classes.txt: no class names"),
        ("classes.txt", "a\nb\na", "'a' is listed twice"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_name_the_classes_is_one_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_class_names(path)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_text_in_another_encoding_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("boat\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match="classes.txt line 2: not UTF-8 text .byte 0xe9.; save the file as UTF-8"):
        read_class_names(path)


def test_a_data_file_says_which_labels_the_dataset_has(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("names: {0: person}\ntask: Pose\nkpt_shape: [17, 3] # x, y, visible\n")
    data = read_data_file(path)
    assert (data.names, data.task, data.keypoints) == (["person"], "pose", (17, 3))
