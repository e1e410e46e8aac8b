"""The human body: MakeHuman's base mesh and rig (CC0), reduced to few faces and posed by linear blend skinning.

The files are those of the folder `makehuman/data` of https://github.com/makehumancommunity/makehuman; they are not part
of tinydet.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.input_files import read_file
from tinydet._internal.json_files import read_json

FILES = ("3dobjs/base.obj", "rigs/default.mhskel", "rigs/default_weights.mhw")
# The bones that poses turn, with the parts of the body that each moves; all others follow their parents.
BONES = (
    "root", "spine05", "spine03", "neck01", "head", "upperarm01.L", "upperarm01.R", "lowerarm01.L", "lowerarm01.R",
    "upperleg01.L", "upperleg01.R", "lowerleg01.L", "lowerleg01.R", "foot.L", "foot.R",
)  # fmt: skip
PARTS = ("torso", "head", "hair", "upper arm", "forearm", "hand", "thigh", "shin", "foot", "long hair", "skirt")
CELLS = (0.017, 0.03, 0.055)  # size of the cells in which vertices are merged, as a fraction of the stature
_GROUPS = ("body", "helper-hair", "helper-skirt")


class Level(NamedTuple):
    """The body at one level of detail, at rest, one unit tall: x forward, y left, z up."""

    vertices: NDArray[np.float64]  # (V, 3)
    normals: NDArray[np.float64]  # (V, 3) unit vectors
    weights: NDArray[np.float64]  # (V, len(BONES)), rows sum to 1
    faces: NDArray[np.intp]  # (F, 4)
    parts: NDArray[np.intp]  # (F,) index into `PARTS`
    widening: NDArray[np.float64]  # (V,) how much clothes add there, 0 to 1


@dataclass(frozen=True, eq=False)
class Body:
    """The levels of detail of the mesh, finest first, and its skeleton."""

    levels: tuple[Level, ...]
    heads: NDArray[np.float64]  # (len(BONES), 3), where each bone begins
    parents: tuple[int, ...]  # of `BONES`, parents first; -1 for the root

    def posed(
        self, level: int, rotations: Mapping[str, NDArray[np.float64]], clothes: float = 0.0
    ) -> NDArray[np.float64]:
        """Return the vertices (V, 3) of a level in a pose.

        Args:
            rotations: (3, 3) by bone, around its beginning, in the axes of the body at rest.
            clothes: thickness of the clothes as a fraction of the stature.
        """
        transforms = np.zeros((len(BONES), 3, 4))
        for n, name in enumerate(BONES):
            local = np.eye(3, 4)
            if (turn := rotations.get(name)) is not None:
                local[:, :3] = turn
                local[:, 3] = self.heads[n] - turn @ self.heads[n]
            if (parent := self.parents[n]) >= 0:
                above = transforms[parent]
                local = np.column_stack([above[:, :3] @ local[:, :3], above[:, :3] @ local[:, 3] + above[:, 3]])
            transforms[n] = local
        mesh = self.levels[level]
        blended = (mesh.weights @ transforms.reshape(len(BONES), 12)).reshape(-1, 3, 4)
        rest = mesh.vertices + mesh.normals * (clothes * mesh.widening)[:, None]
        return np.asarray(np.einsum("vij,vj->vi", blended[:, :, :3], rest) + blended[:, :, 3])


def check_mesh_folder(folder: Path) -> None:
    """Check that the files of the mesh are there.

    Raises:
        ValueError: the folder or a file is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"--mesh {folder} is no folder; name the one with MakeHuman's {FILES[0]} and rigs (CC0)")
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(
                f"--mesh {folder} has no {name}; name the folder `makehuman/data` of "
                "https://github.com/makehumancommunity/makehuman, whose mesh and rig are CC0"
            )


@functools.lru_cache(maxsize=2)
def load_body(folder: Path) -> Body:
    """Read the mesh, the skeleton and the weights.

    Raises:
        ValueError: a file is missing or malformed. Names it.
    """
    check_mesh_folder(folder)
    source, rig, weighting = (folder / name for name in FILES)
    vertices, groups = _read_obj(source)
    skeleton, weights = read_json(rig), read_json(weighting)
    try:
        bones: dict[str, Any] = skeleton["bones"]
        joints = {name: vertices[indices].mean(axis=0) for name, indices in skeleton["joints"].items()}
        ancestors = {name: _chain(bones, name) for name in bones}
        heads = np.array([joints[bones[name]["head"]] for name in BONES])
        owners = {name: next(BONES.index(each) for each in chain if each in BONES) for name, chain in ancestors.items()}
        parents = tuple(
            next((BONES.index(each) for each in ancestors[name][1:] if each in BONES), -1) for name in BONES
        )
        by_bone = np.zeros((len(vertices), len(BONES)))
        strongest, fine = np.zeros(len(vertices)), np.full(len(vertices), -1)
        names = list(bones)
        for name, pairs in weights["weights"].items():
            if name not in owners or not pairs:
                continue
            table = np.array(pairs, float)
            index, amount = table[:, 0].astype(np.intp), table[:, 1]
            np.add.at(by_bone[:, owners[name]], index, amount)
            better = amount > strongest[index]
            strongest[index[better]], fine[index[better]] = amount[better], names.index(name)
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{rig} and {weighting} are not MakeHuman's default rig ({error!r}); take them from one "
                         "release of makehuman") from error  # fmt: skip
    by_bone[by_bone.sum(axis=1) == 0, 0] = 1
    by_bone /= by_bone.sum(axis=1, keepdims=True)
    faces = np.concatenate([groups[name] for name in _GROUPS])
    ranges = np.repeat(np.arange(len(_GROUPS)), [len(groups[name]) for name in _GROUPS])
    foot = vertices[groups["body"].ravel(), 2].min()
    stature = vertices[groups["body"].ravel(), 2].max() - foot
    vertices, heads = (np.asarray((points - (0, 0, foot)) / stature) for points in (vertices, heads))
    part_of_vertex = np.array([_part(names[n]) if n >= 0 else 0 for n in fine])
    around = part_of_vertex[faces]  # a face belongs to the part of most of its corners
    most = (around[:, :, None] == around[:, None, :]).sum(axis=2).argmax(axis=1)
    parts = around[np.arange(len(faces)), most]
    parts[ranges == 1], parts[ranges == 2] = PARTS.index("long hair"), PARTS.index("skirt")
    parts[(parts == PARTS.index("head")) & _is_scalp(vertices[faces].mean(axis=1), vertices)] = PARTS.index("hair")
    levels = tuple(_reduced(vertices, by_bone, faces, parts, cell) for cell in CELLS)
    return Body(levels, heads, parents)


def turn(*, pitch: float = 0.0, roll: float = 0.0, yaw: float = 0.0) -> NDArray[np.float64]:
    """Return the rotation by angles in degrees: pitch forward and down, roll to the right, yaw to the left."""
    a, b, c = np.radians((pitch, roll, yaw))
    around_y = np.array(((np.cos(a), 0, np.sin(a)), (0, 1.0, 0), (-np.sin(a), 0, np.cos(a))))
    around_x = np.array(((1.0, 0, 0), (0, np.cos(b), -np.sin(b)), (0, np.sin(b), np.cos(b))))
    around_z = np.array(((np.cos(c), -np.sin(c), 0), (np.sin(c), np.cos(c), 0), (0, 0, 1.0)))
    return np.asarray(around_z @ around_x @ around_y)


def _read_obj(path: Path) -> tuple[NDArray[np.float64], dict[str, NDArray[np.intp]]]:
    """Return the vertices in our axes, and the quads of each group."""
    vertices: list[list[float]] = []
    groups: dict[str, list[list[int]]] = {}
    current = ""
    try:
        for line in read_file(path).decode("utf-8", "replace").splitlines():
            words = line.split()
            if not words:
                continue
            if words[0] == "v":
                x, y, z = map(float, words[1:4])
                vertices.append([z, x, y])
            elif words[0] == "g":
                current = words[1]
            elif words[0] == "f" and current in _GROUPS:
                quad = [int(word.split("/")[0]) - 1 for word in words[1:5]]
                groups.setdefault(current, []).append((quad + quad[-1:])[:4])
        if missing := [name for name in _GROUPS if name not in groups]:
            raise ValueError(f"no group {missing[0]}")
        corners = {name: np.array(quads, np.intp) for name, quads in groups.items()}
        if max(int(quads.max()) for quads in corners.values()) >= len(vertices):
            raise ValueError("a face names a vertex that is not there")
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} is not MakeHuman's base mesh ({error}); download it again") from error
    return np.array(vertices), corners


def _chain(bones: Mapping[str, Any], name: str) -> list[str]:
    """Return a bone and those above it."""
    chain = [name]
    while (parent := bones[chain[-1]].get("parent")) and len(chain) <= len(bones):
        chain.append(parent)
    return chain


def _part(bone: str) -> int:
    """Return the index of the part that a bone of the full rig belongs to."""
    for part, stems in (
        ("hand", ("finger", "wrist", "metacarpal")),
        ("forearm", ("lowerarm",)),
        ("upper arm", ("upperarm",)),
        ("foot", ("foot", "toe")),
        ("shin", ("lowerleg",)),
        ("thigh", ("upperleg", "pelvis", "root")),
        ("torso", ("spine", "breast", "clavicle", "shoulder")),
    ):
        if bone.startswith(stems):
            return PARTS.index(part)
    return PARTS.index("head")


def _is_scalp(middles: NDArray[np.float64], vertices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which faces lie where hair grows, above a plane from the forehead to the nape."""
    nape, forehead = 0.87, 0.955
    front = vertices[vertices[:, 2] > nape][:, 0]
    ahead = (middles[:, 0] - front.min()) / max(float(np.ptp(front)), 1e-9)
    return np.asarray(middles[:, 2] > nape + (forehead - nape) * ahead)


def _reduced(
    vertices: NDArray[np.float64],
    weights: NDArray[np.float64],
    faces: NDArray[np.intp],
    parts: NDArray[np.intp],
    cell: float,
) -> Level:
    """Merge the vertices of each cell that follow the same bone; drop the faces that vanish."""
    used = np.unique(faces)
    follows = weights.argmax(axis=1)
    loose = np.zeros(len(vertices), np.intp)  # hair and skirts stay separate from the body
    for part in ("long hair", "skirt"):
        loose[np.unique(faces[parts == PARTS.index(part)])] = PARTS.index(part)
    keys = np.column_stack([np.floor(vertices / cell).astype(np.intp), follows, loose])[used]
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    merged = np.full(len(vertices), -1)
    merged[used] = inverse.ravel()
    count = int(merged.max()) + 1
    amount = np.bincount(merged[used], minlength=count)[:, None]
    position, blend = np.zeros((count, 3)), np.zeros((count, weights.shape[1]))
    np.add.at(position, merged[used], vertices[used])
    np.add.at(blend, merged[used], weights[used])
    position, blend = position / amount, blend / amount
    quads = merged[faces]
    corners = np.sort(quads, axis=1)
    distinct = 1 + (np.diff(corners, axis=1) > 0).sum(axis=1)
    _, first = np.unique(np.column_stack([corners, parts]), axis=0, return_index=True)
    kept = np.sort(first[distinct[first] >= 3])
    quads, parts = quads[kept], parts[kept]
    around = position[quads]
    areas = np.cross(around[:, 2] - around[:, 0], around[:, 3] - around[:, 1])
    normals = np.zeros((count, 3))
    for corner in range(4):
        np.add.at(normals, quads[:, corner], areas)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    widening = np.zeros(count)
    for part, amount_of in (("torso", 1.0), ("upper arm", 0.7), ("forearm", 0.5), ("thigh", 0.5), ("shin", 0.5),
                            ("foot", 0.4), ("hair", 0.4)):  # fmt: skip
        widening[np.unique(quads[parts == PARTS.index(part)])] = amount_of
    return Level(position, normals, blend, quads, parts, widening)
