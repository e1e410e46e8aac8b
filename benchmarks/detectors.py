"""Train every detector with alpha 1 and with S-alpha, by its own assignment and by NWD rank, for equal CPU time.

    python benchmarks/detectors.py                       # everything that is not recorded yet
    python benchmarks/detectors.py --list                # what there is, and what is recorded
    python benchmarks/detectors.py --only fcos,S --budget 60
    python benchmarks/detectors.py --report              # tables of the training runs recorded so far

The data are the persons of HIT-UAV, thermal drone frames of 640 x 512 pixels: 400 frames to train on, 100 to score. All
networks have MobileNetV2, pretrained on ImageNet, and a pyramid of 64 channels (`--preset small`; `nano`: the preset of
that name), and train on tiles of 256 pixels with at least one person, at the learning rate 0.02. Seven stages:

cost    CPU time of a training step of each network, in turns with RetinaNet's. It decides the number of epochs: those
        that take as much CPU time as --epochs epochs of RetinaNet. So each network gets a complete learning rate
        schedule and, up to rounding to whole epochs, the same CPU time.
train   one seed of each combination. The last weights are kept, exported to ONNX, verified, and the file is scored on
        whole frames with the rules of the TinyPerson benchmark.
seeds   two more seeds of the four best combinations and of RetinaNet with S-alpha.
rates   FCOS, also as `nano`, by NWD rank at half the learning rate: is the gain of S-alpha that of a lower rate?
speed   tiles of 640 pixels per second of CPU time of each exported network in OpenVINO, FP32, one thread, in turns.
scale   scores of RetinaNet with S-alpha and of the best combination on frames enlarged by 1.5 and 2.
precision   conversion of each network with S-alpha to FP16, and of FCOS and FreeAnchor to INT8, with AP before and
        after on 50 frames, and a TensorRT-RTX engine of each file.

A combination that does not exist is listed with the reason. Each finished training is a line of
RESULTS/detectors.jsonl (rates: detectors_rates.jsonl). An interrupted training resumes. Takes about eight CPU hours,
two trainings at a time with one thread each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectors_report import write_report
from environment import ROOT, environment
from timing import interleaved, summary

sys.path.insert(0, str(ROOT))  # measure this checkout, whose commit is recorded, and not an installed package

from tinydet.__main__ import main as tinydet
from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.models.registry import detector_info
from tinydet.study.trials import Trial, Trials, describe, last, read_records

TILES = ("--tile", "256", "--overlap", "0", "--no-empty-tiles")
TRAINING = ("--categories", "person", *TILES)
SCORING = ("--categories", "person", "--protocol", "tinyperson")
EXPORTED_TILE = 640  # an image is one tile
ALPHAS = {"1": ("--alpha", "1"), "S": ("--salpha",)}
OWN, NWD = "own", "nwd"  # the detector's own assignment rule; the K priors of highest NWD
SEED, MORE_SEEDS = 0, (1, 2)
BEST = 4  # combinations that get more seeds
POINTS = ("--assign", "points")
RATE, HALF_RATE = "0.02", "0.01"
ROUNDS, STEPS = 5, 4  # of the stage cost
SPEED_RUNS = 60
SCALES = (1.0, 1.5, 2.0)
INT8 = ("fcos", "free_anchor")  # networks that are also converted to INT8
CONVERTED_ON = 50  # frames


class Network(NamedTuple):
    """A network of the table.

    Attributes:
        rank: positives per object of the assignment by NWD rank, as its authors chose; 0: not applicable.
        flags: training options; without any it is the detector in the preset small.
        own: options of its own assignment rule, where that is not its default.
    """

    detector: str
    rank: int = 0
    flags: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


NETWORKS = {
    "retinanet": Network("retinanet", 3),
    "faster_rcnn": Network("faster_rcnn", 2),
    "retinanet-p3p7": Network("retinanet-p3p7", 3),
    "fcos": Network("fcos", 3, own=POINTS),
    "nano": Network("fcos", 3, ("--preset", "nano"), own=POINTS),
    "fcos-p3p7": Network("fcos-p3p7", 3),
    "free_anchor": Network("free_anchor"),
    "libra_rcnn": Network("libra_rcnn", 2),
    "grid_rcnn": Network("grid_rcnn", 2),
}
REFERENCE = "retinanet"


class Combination(NamedTuple):
    """What is trained: a network, an assignment rule and a way to choose alpha."""

    network: str
    assign: str
    alpha: str


DEFAULT = Combination(REFERENCE, OWN, "S")
RATED = [Combination(network, NWD, alpha) for network in ("fcos", "nano") for alpha in ALPHAS]


@command("benchmarks/detectors.py")
def main(argv: Sequence[str] | None = None) -> int:
    words = [*(sys.argv[1:] if argv is None else argv)]
    if words[:1] == ["train-and-score"]:
        return train_and_score(words[1:])
    args = arguments(words)
    chosen = [c for c in combinations() if selected(c, args.only)]
    if args.list:
        show(chosen, args)
        return 0
    if not args.report:
        run(chosen, args)
    print("\n".join(f"wrote {path}" for path in write_report(args.results, args.docs)))
    return 0


def run(chosen: Sequence[Combination], args: argparse.Namespace) -> None:
    """Run the stages, as far as --stage and --budget allow."""
    commit = environment()["commit"]  # of the running code, even if another is checked out meanwhile
    costs = measure_costs(dict.fromkeys((c.network, c.assign) for c in chosen), args)
    if args.stage == "cost":
        return
    study = partial(
        Trials,
        folder=args.work,
        stamp=lambda: {**environment(), "commit": commit},
        jobs=args.jobs,
        minutes=args.budget,
        keep_models=True,
        program=(sys.executable, "-u", str(Path(__file__).resolve()), "train-and-score"),
    )
    table, rates = study(args.results / "detectors.jsonl"), study(args.results / "detectors_rates.jsonl")
    complete = True
    if args.stage in ("all", "train"):
        complete = table.run([trial(c, SEED, costs, args) for c in chosen])
    if complete and args.stage in ("all", "seeds"):
        more = [c for c in chosen if c in {*best_of(args, BEST), DEFAULT}]
        complete = table.run([trial(c, seed, costs, args) for seed in MORE_SEEDS for c in more])
    if complete and args.stage in ("all", "rates"):
        complete = rates.run([trial(c, SEED, costs, args, HALF_RATE) for c in chosen if c in RATED])
    if complete and args.stage in ("all", "speed"):
        measure_speeds(args)
    if complete and args.stage in ("all", "scale"):
        measure_scales(args)
    if complete and args.stage in ("all", "precision"):
        measure_precisions(dict.fromkeys(c.network for c in chosen), args)
    if not complete:
        print("Time limit reached. Run the same command again to resume.")


def combinations() -> list[Combination]:
    """List the combinations that exist, in the order in which they run."""
    every = [Combination(network, assign, alpha) for network in NETWORKS for assign in (OWN, NWD) for alpha in ALPHAS]
    return [c for c in every if not absent(c)]


def absent(combination: Combination) -> str:
    """Return why a combination does not exist; an empty string: it does."""
    detector = NETWORKS[combination.network].detector
    has_rules = "assign" in detector_info(detector).option_names
    return "" if combination.assign == OWN or has_rules else "it has no --assign, but an assignment of its own"


def selected(combination: Combination, only: Sequence[str]) -> bool:
    """Return whether --only selects a combination; a kind that it does not mention is not restricted."""
    for part, names in zip(combination, (NETWORKS, (OWN, NWD), ALPHAS), strict=True):
        wanted = [name for name in only if name in names]
        if wanted and part not in wanted:
            return False
    return True


def best_of(args: argparse.Namespace, count: int) -> list[Combination]:
    """Return the combinations with the best AP50 of the first seed, best first."""
    scores = {}
    for record in read_records(args.results / "detectors.jsonl"):
        key = record["key"]
        combination = Combination(key["network"], key["assign"], key["alpha"])
        if key["seed"] == SEED:
            scores[combination] = last(record, "AP50") or 0.0
    return sorted(scores, key=lambda c: -scores[c])[:count]


def show(chosen: Sequence[Combination], args: argparse.Namespace) -> None:
    """Print each combination with its recorded seeds, and those that do not exist with the reason."""
    records = read_records(args.results / "detectors.jsonl")
    for combination in chosen:
        key = combination._asdict()
        done = [r["key"]["seed"] for r in records if {n: r["key"][n] for n in key} == key]
        state = f"recorded: seed {', '.join(map(str, sorted(done)))}" if done else "not recorded"
        print(f"{describe(key)}: {state}")
    for network in NETWORKS:
        for assign in (OWN, NWD):
            if reason := absent(Combination(network, assign, "1")):
                print(f"{network}, assign {assign}: does not exist: {reason}")


def network_flags(network: str, assign: str, rate: str = RATE) -> tuple[str, ...]:
    """Return the training options of a network with an assignment rule and a learning rate."""
    detector, rank, flags, own = NETWORKS[network]
    rule = ("--assign", "nwd", "--assign-rank", str(rank)) if assign == NWD else own
    return (*(flags or ("--preset", "small", "--detector", detector)), "--lr", rate, *rule)


def trial(
    combination: Combination,
    seed: int,
    costs: dict[str, Any],
    args: argparse.Namespace,
    rate: str = RATE,
) -> Trial:
    network, assign, alpha = combination
    epochs = costs[f"{network} {assign}"]["epochs"]
    varied = ("--epochs", str(epochs), *ALPHAS[alpha], "--seed", str(seed))
    files = ("--data", str(args.data / "hituav-train"), "--weights-backbone", args.weights_backbone)
    score = ("--score-on", str(args.data / "hituav-val"))
    key: dict[str, str | float] = {**combination._asdict(), "seed": seed}
    return Trial(key, (*network_flags(network, assign, rate), *TRAINING, *varied), (*files, *score))


def train_and_score(words: Sequence[str]) -> int:
    """Train, export and score one combination; write scores, CPU time and file size as the JSON file of a trial.

    Takes the options of `tinydet train` and the validation set as --score-on.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--score-on")
    args, flags = parser.parse_known_args(words)
    trained, used, scored = (args.output.with_suffix(f".{name}.json") for name in ("trained", "cpu", "scores"))
    if not trained.exists():
        earlier = json.loads(used.read_text()) if "--resume" in flags and used.exists() else 0.0
        began = time.process_time()
        try:
            tinydet(["train", *flags, "--output", str(args.output), "--json", str(trained)])
        finally:
            write_json(used, earlier + time.process_time() - began)
    if not trained.exists():
        return 2  # the message of the training is in the log
    found = json.loads(trained.read_text())
    found["cpu_seconds"] = round(json.loads(used.read_text()), 1)
    if not found["diverged"]:
        graph = args.output.with_suffix(".onnx")
        checked("export", "onnx", args.output, "--tile", EXPORTED_TILE, "--data", args.score_on, "--limit", 8)
        checked("evaluate", graph, "--data", args.score_on, *SCORING, "--json", scored)
        epochs = int(flags[flags.index("--epochs") + 1])
        scores = json.loads(scored.read_text())
        found["history"] = [{"epoch": epochs, **history_entry(scores)}]
        found |= {"AP": scores["AP"], "MR": scores["MR"], "megabytes": round(graph.stat().st_size / 1e6, 2)}
    write_json(args.json, found)
    trained.unlink()
    return 0


def history_entry(scores: dict[str, Any]) -> dict[str, float]:
    """Return the scores of the table from the JSON of `tinydet evaluate`."""
    ap, mr = scores["AP"], scores["MR"]
    return {
        "AP50": ap["all"]["0.50"],
        "AP50-tiny": ap["tiny"]["0.50"],
        "AP75": ap["all"]["0.75"],
        "MR50-tiny": mr["tiny"]["0.50"],
    }


def checked(*words: object) -> None:
    """Run a command of tinydet.

    Raises:
        SystemExit: it failed; its message is printed already.
    """
    if code := tinydet([str(word) for word in words]):
        raise SystemExit(code)


def measure_costs(pairs: Iterable[tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    """Measure what a step of each network and assignment costs, where it is not known yet; return all costs by name.

    Each is measured in turns with the reference, so that the load of the machine affects both. The ratio is the median
    of the rounds. The epochs follow from the network with its own assignment, so that rounding never gives two
    assignments, which cost the same up to a few percent, another number of epochs.
    """
    path = args.results / "detectors_cost.json"
    known = json.loads(path.read_text()) if path.exists() else {"epochs_of_reference": args.epochs, "costs": {}}
    costs: dict[str, Any] = known["costs"]
    if known["epochs_of_reference"] != args.epochs:
        raise ValueError(
            f"{path} is for --epochs {known['epochs_of_reference']}, not {args.epochs}; choose another --results folder"
        )
    for network, assign in [(REFERENCE, OWN), *(pair for each in pairs for pair in ((each[0], OWN), each))]:
        name = f"{network} {assign}"
        if name in costs:
            continue
        sides = {REFERENCE: Steps((REFERENCE, OWN), args), name: Steps((network, assign), args)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(ROUNDS + 1):  # the first round warms up
            for side, steps in sides.items():
                seconds = steps.run(STEPS)
                times[side] += [seconds] if turn else []
        ratio = statistics.median(a / b for a, b in zip(times[name], times[REFERENCE], strict=True))
        own = costs.get(f"{network} {OWN}", {"ratio": ratio})
        epochs = max(1, round(args.epochs / own["ratio"]))
        costs[name] = {
            "ratio": round(ratio, 3),
            "epochs": epochs,
            "tiles": len(sides[name].trainer.tiles),
            "cpu_seconds_per_tile": round(min(times[name]), 4),
            **sides[name].size(),
        }
        write_json(path, {"command": "python benchmarks/detectors.py --stage cost", **environment(), **known})
        print(f"{name}: {ratio:.2f} x the CPU time of {REFERENCE}, {epochs} epochs", flush=True)
    return costs


class Steps:
    """Training steps of one network, as `tinydet train` runs them."""

    def __init__(self, pair: tuple[str, str], args: argparse.Namespace) -> None:
        import torch

        from tinydet.models.build import DetectorConfig, build_detector
        from tinydet.models.checkpoint import Checkpoint
        from tinydet.train.config import config_of
        from tinydet.train.defaults import choose_network, choose_schedule
        from tinydet.train.run import load_data, schedule_of, training_tiles, use_bfloat16
        from tinydet.train.trainer import Trainer

        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        given = config_of(
            [*network_flags(*pair), *TRAINING, "--epochs", "1", "--data", str(args.data / "hituav-train"),
             "--weights-backbone", args.weights_backbone]
        ).resolve()  # fmt: skip
        config, _ = choose_network(given, device="cpu")
        data, _ = load_data(config)
        tiles = training_tiles(config, data)
        config, _ = choose_schedule(config, given, len(tiles))
        network = DetectorConfig(
            config.backbone or "",
            config.channels or 0,
            classes=len(data.classes),
            detector=config.network,
            options=config.options,
        )
        detector = build_detector(network)
        detector.backbone.load_weights(args.weights_backbone)
        detector.backbone.freeze(config.freeze)
        device = torch.device("cpu")
        self.trainer = Trainer(
            detector=detector,
            tiles=tiles,
            schedule=schedule_of(config),
            checkpoint=Checkpoint(network, {}, data.classes, data.category_ids, tile=EXPORTED_TILE),
            output=Path("unused.pth"),
            device=device,
            autocast=use_bfloat16(config.precision, device),
        )
        detector.train()
        self._batches = itertools.cycle(self.trainer.batches())  # the same tiles for every network

    def run(self, count: int) -> float:
        """Run some steps; return their CPU seconds per tile."""
        batches = [next(self._batches) for _ in range(count)]
        tiles = self.trainer.tiles
        began = time.process_time()
        for batch in batches:
            samples = [tiles.sample(index, seed=SEED, epoch=0) for index in batch]
            self.trainer.step(samples, self.trainer.schedule.lr / 3)  # where the warm-up begins
        return (time.process_time() - began) / sum(map(len, batches))

    def size(self) -> dict[str, float]:
        """Return the multiply-adds of a tile of 640 pixels, in units of 10^9, and the parameters, in 10^6."""
        from tinydet.models.cost import multiply_adds

        detector = self.trainer.detector
        adds = sum(multiply_adds(detector, (EXPORTED_TILE, EXPORTED_TILE)).values())
        return {
            "gmac": round(adds / 1e9, 2),
            "million_parameters": round(sum(p.numel() for p in detector.parameters()) / 1e6, 2),
        }


def measure_speeds(args: argparse.Namespace) -> None:
    """Time the exported networks in turns, one thread each, on one frame."""
    from tinydet.data.coco import read_pixels
    from tinydet.data.source import find_source
    from tinydet.runtime.backends import open_model

    files: dict[str, Path] = {}
    for combination in combinations():
        costs = measure_costs([(combination.network, combination.assign)], args)
        graph = args.work / f"{trial(combination, SEED, costs, args).name}.onnx"
        if graph.exists():  # assignment and alpha do not change the graph
            files.setdefault(combination.network, graph)
    frames = find_source(args.data / "hituav-val").load()
    tile = np.zeros((1, EXPORTED_TILE, EXPORTED_TILE, 3), np.uint8)
    pixels = read_pixels(frames, 0)
    tile[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    backends = {name: open_model(path, "openvino", threads=1) for name, path in files.items()}
    stamp = environment()
    sides = {name: partial(backend.run, tile) for name, backend in backends.items()}
    times = interleaved(sides, runs=SPEED_RUNS, seconds=60, clock=time.process_time_ns)
    found = {
        name: {"tiles_per_second": round(1000 / summary(values)["median"], 2), "milliseconds": summary(values)}
        for name, values in times.items()
    }
    write_json(
        args.results / "detectors_speed.json",
        {"command": "python benchmarks/detectors.py --stage speed", **stamp, "threads": 1, "networks": found},
    )


def measure_scales(args: argparse.Namespace) -> None:
    """Score the default and the best combination on enlarged frames."""
    found = {}
    for combination in dict.fromkeys((DEFAULT, *best_of(args, 1))):
        costs = measure_costs([(combination.network, combination.assign)], args)
        graph = args.work / f"{trial(combination, SEED, costs, args).name}.onnx"
        for scale in SCALES if graph.exists() else ():
            scored = graph.with_suffix(f".scale{scale:g}.json")
            data = ("--data", args.data / "hituav-val", *SCORING)
            checked("evaluate", graph, *data, "--scale", f"{scale:g}", "--json", scored)
            scores = history_entry(json.loads(scored.read_text()))
            found[f"{' '.join(combination)} {scale:g}"] = {**combination._asdict(), "scale": scale, **scores}
    content = {"command": "python benchmarks/detectors.py --stage scale", **environment(), "scores": found}
    write_json(args.results / "detectors_scale.json", content)


def measure_precisions(networks: Iterable[str], args: argparse.Namespace) -> None:
    """Convert the exported networks, where that is not recorded yet; record AP before and after, and build engines.

    A conversion that verification rejects is recorded with its code.
    """
    path = args.results / "detectors_precision.json"
    found: dict[str, Any] = json.loads(path.read_text())["files"] if path.exists() else {}
    for network in networks:
        costs = measure_costs([(network, OWN)], args)
        graph = args.work / f"{trial(Combination(network, OWN, 'S'), SEED, costs, args).name}.onnx"
        for precision in ("fp32", "fp16", *(["int8"] if network in INT8 else [])):
            name = f"{network} {precision}"
            if name in found or not graph.exists():
                continue
            file = graph.with_suffix(f".{precision}.onnx") if precision != "fp32" else graph
            began = time.process_time()
            code = 0
            if precision != "fp32":
                data = ("--data", args.data / "hituav-val", "--limit", CONVERTED_ON)
                calibration = ("--calibration", args.data / "hituav-train" / "images") if precision == "int8" else ()
                words = ["export", "onnx", graph, "--precision", precision, *data, *calibration]
                code = tinydet([str(word) for word in words])
            row: dict[str, Any] = {"network": network, "precision": precision, "code": code}
            row["conversion_cpu_seconds"] = round(time.process_time() - began, 1)
            if code == 0:
                if precision != "fp32":
                    report = json.loads(file.with_suffix(".verify.json").read_text())
                    compared = report["parity"].values()
                    row |= {
                        "AP": report["precision"],
                        "images": report["images"],
                        "kept_in_fp32": report["kept_in_fp32"],
                        "detections": sum(part["detections"] for part in compared),
                        "unmatched": sum(part["unmatched"] for part in compared),
                    }
                row |= {"megabytes": round(file.stat().st_size / 1e6, 2), **engine_of(file, precision)}
            found[name] = row
            stamp = {"command": "python benchmarks/detectors.py --stage precision", **environment()}
            write_json(path, {**stamp, "files": found})


def engine_of(file: Path, precision: str) -> dict[str, float]:
    """Build an engine with TensorRT-RTX; return size and seconds."""
    engine = file.with_suffix(".engine")
    checked("export", "engine", file, "--target", "rtx", "--precision", precision, "--output", engine)
    built = json.loads(engine.with_suffix(".json").read_text())["engine"]
    return {"engine_megabytes": round(built["bytes"] / 1e6, 2), "engine_seconds": round(built["seconds"], 1)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = (*NETWORKS, OWN, NWD, *ALPHAS)
    add("--stage", choices=("all", "cost", "train", "seeds", "rates", "speed", "scale", "precision"), default="all",
        help="run one stage only (default: all)")  # fmt: skip
    add("--only", default="", metavar="A,B",
        help=f"these networks, assignments and alphas only: {', '.join(names)} (default: all)")  # fmt: skip
    add("--list", action="store_true", help="list the combinations and what is recorded, then stop")
    add("--report", action="store_true", help="write the tables of the recorded runs, then stop")
    add("--epochs", type=positive_int, default=5, metavar="N",
        help="epochs of RetinaNet that make the CPU time of each training (default: %(default)s)")  # fmt: skip
    add("--jobs", type=positive_int, default=2, help="training runs at a time, sharing the CPU cores (default: 2)")
    add("--budget", type=float, metavar="MINUTES", help="start no training after this many minutes (default: no limit)")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR",
        help="folder of hituav-train and hituav-val (default: ../shared/data)")  # fmt: skip
    add("--weights-backbone", metavar="default|FILE",
        help="ImageNet weights (default: DATA/weights/mobilenet_v2-b0353104.pth, or torchvision's)")  # fmt: skip
    add("--work", type=Path, default=ROOT / "runs" / "detectors", metavar="DIR",
        help="folder of models, training states and logs (default: runs/detectors)")  # fmt: skip
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR",
        help="folder of detectors.jsonl and its companions (default: benchmarks/results)")  # fmt: skip
    add("--docs", type=Path, default=ROOT / "docs", metavar="DIR",
        help="folder of detectors.md (default: docs)")  # fmt: skip
    args = parser.parse_args(argv)
    args.only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in args.only if name not in names]:
        parser.error(f"argument --only: choose from {', '.join(names)}; got {', '.join(unknown)}")
    args.data, args.work = args.data.resolve(), args.work.resolve()
    if not (args.list or args.report):
        for name in ("hituav-train", "hituav-val"):
            if not (args.data / name).is_dir():
                parser.error(f"{args.data / name} does not exist; --data must contain hituav-train and hituav-val")
    local = args.data / "weights" / "mobilenet_v2-b0353104.pth"
    args.weights_backbone = args.weights_backbone or (str(local) if local.exists() else "default")
    return args


if __name__ == "__main__":
    sys.exit(main())
