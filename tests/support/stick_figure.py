"""A folder in the format of MakeHuman's mesh and rig, with a figure of boxes instead of a body."""

from __future__ import annotations

import json
from pathlib import Path

# Bone: parent, beginning (right, up, forward) in decimeters as MakeHuman has them, and half size of its box.
_BONES = {
    "root": ("", (0, 9, 0), (1.5, 0.8, 0.9)),
    "spine05": ("root", (0, 10, 0), (1.5, 0.8, 0.9)),
    "spine03": ("spine05", (0, 12, 0), (1.9, 1.2, 1.0)),
    "neck01": ("spine03", (0, 14, 0), (0.5, 0.5, 0.5)),
    "head": ("neck01", (0, 15, 0), (0.8, 1.2, 0.9)),
    "upperarm01.L": ("spine03", (2, 13, 0), (0.4, 1.3, 0.4)),
    "upperarm01.R": ("spine03", (-2, 13, 0), (0.4, 1.3, 0.4)),
    "lowerarm01.L": ("upperarm01.L", (4, 11, 0), (0.4, 1.3, 0.4)),
    "lowerarm01.R": ("upperarm01.R", (-4, 11, 0), (0.4, 1.3, 0.4)),
    "upperleg01.L": ("root", (1, 7, 0), (0.7, 2.2, 0.7)),
    "upperleg01.R": ("root", (-1, 7, 0), (0.7, 2.2, 0.7)),
    "lowerleg01.L": ("upperleg01.L", (1, 3, 0), (0.5, 2.2, 0.5)),
    "lowerleg01.R": ("upperleg01.R", (-1, 3, 0), (0.5, 2.2, 0.5)),
    "foot.L": ("lowerleg01.L", (1, 0.5, 0.3), (0.4, 0.4, 1.2)),
    "foot.R": ("lowerleg01.R", (-1, 0.5, 0.3), (0.4, 0.4, 1.2)),
}
_FACES = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))


def write_stick_figure(folder: Path) -> Path:
    """Write the mesh, the rig and the weights, and return the folder."""
    lines, weights, joints, bones = [], {}, {}, {}
    count = 0
    groups = {"body": list(_BONES), "helper-hair": ["head"], "helper-skirt": ["root"]}
    for group, names in groups.items():
        lines.append(f"g {group}")
        for name in names:
            parent, middle, half = _BONES[name]
            for corner in range(8):
                signs = [1 if corner >> axis & 1 else -1 for axis in range(3)]
                lines.append("v " + " ".join(f"{m + s * h:.3f}" for m, s, h in zip(middle, signs, half, strict=True)))
            lines += ["f " + " ".join(f"{count + corner + 1}/1" for corner in face) for face in _FACES]
            vertices = list(range(count, count + 8))
            weights.setdefault(name, []).extend([vertex, 1.0] for vertex in vertices)
            if group == "body":
                joints[f"{name}____head"] = vertices
                bones[name] = {"parent": parent or None, "head": f"{name}____head"}
            count += 8
    (folder / "3dobjs").mkdir(parents=True)
    (folder / "rigs").mkdir()
    (folder / "3dobjs" / "base.obj").write_text("\n".join(lines) + "\n")
    (folder / "rigs" / "default.mhskel").write_text(json.dumps({"bones": bones, "joints": joints}))
    (folder / "rigs" / "default_weights.mhw").write_text(json.dumps({"weights": weights}))
    return folder
