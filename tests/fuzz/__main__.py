"""Run damaged and hostile input through the commands, and report cases without a result or one clear error.

python -m tests.fuzz --cases 3000 --seed 1
python -m tests.fuzz --kind images --kind models --cases 200
python -m tests.fuzz --case 1-images-17          repeat one case and keep its files
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.corpus import Corpus
from tests.fuzz.kinds import KINDS, make, names
from tests.fuzz.runner import Case, Result, Worker

EXAMPLES = 3  # kept of each failure
LIBRARIES = (
    "numpy",
    "cv2",
    "PIL.Image",
    "rasterio",
    "av",
    "onnx",
    "onnxruntime",
    "openvino",
    "scipy.io",
    "pyogrio",
    "pandas",
)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    torch = "checkpoints" in options.kind or any("checkpoints" in name for name in options.case)
    folder = options.failures
    with temporary_folder() as place:
        (place / "corpus").mkdir()
        corpus = Corpus(place / "corpus", torch=torch)
        worker = Worker(
            place / "cases", [*LIBRARIES, *(["torch", "torchvision"] if torch or uses_torch(options) else [])]
        )
        (place / "cases").mkdir()
        failures: dict[str, list[tuple[Case, Result]]] = collections.defaultdict(list)
        counts: collections.Counter[tuple[str, int | str]] = collections.Counter()
        seconds: collections.Counter[str] = collections.Counter()
        started = time.monotonic()
        try:
            for name in options.case or names(options.seed, options.cases, options.kind):
                case = make(name, corpus)
                result = worker.run(case)
                counts[case.kind, result.code] += 1
                seconds[case.kind] += result.seconds
                if options.case or options.verbose:
                    print(
                        f"{name} {result.code} {result.seconds:.2f} s  {case.line:.300}\n{result.err:.2000}", flush=True
                    )
                if result.faults:
                    failures[result.signature].append((case, result))
                    if len(failures[result.signature]) == 1:
                        print(f"{name}: {result.signature}", flush=True)
                if options.case or (result.faults and len(failures[result.signature]) <= EXAMPLES):
                    keep(folder / name, case, result)
        finally:
            worker.close()
            summarize(counts, seconds, failures, folder, time.monotonic() - started)
    return 1 if failures else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100, help="number of cases (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases (default: 0)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="kind of input; can be repeated (default: all)")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="run only this case; can be repeated"
    )
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz"), metavar="DIR",
                        help="folder for the files of cases that fail (default: build/fuzz)")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="print every command and its messages")
    options = parser.parse_args(argv)
    options.kind = options.kind or list(KINDS)
    return options


def uses_torch(options: argparse.Namespace) -> bool:
    return bool({"arguments", "annotations", "images"} & set(options.kind))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep(folder: Path, case: Case, result: Result) -> None:
    """Write everything needed to reproduce a case by hand: files, command, output and the reason of the failure."""
    shutil.rmtree(folder, ignore_errors=True)
    case.write(folder)
    (folder / "command").write_text(f"cd {folder.name} && {case.line}\n", errors="backslashreplace")
    faults = "\n".join(result.faults)
    (folder / "result").write_text(f"{result.code}\n{faults}\n\n{result.err[-20_000:]}", errors="backslashreplace")


def summarize(
    counts: collections.Counter[tuple[str, int | str]],
    seconds: collections.Counter[str],
    failures: dict[str, list[tuple[Case, Result]]],
    folder: Path,
    duration: float,
) -> None:
    print(f"\n{'kind':12} {'cases':>6} {'failed':>6} {'CPU s':>7}  exit codes")
    failed = collections.Counter(case.kind for each in failures.values() for case, _ in each)
    for kind in sorted({kind for kind, _ in counts}):
        codes = {str(code): n for (each, code), n in counts.items() if each == kind}
        listed = ", ".join(f"{code}: {n}" for code, n in sorted(codes.items()))
        print(f"{kind:12} {sum(codes.values()):6} {failed[kind]:6} {seconds[kind]:7.1f}  {listed}")
    print(f"{sum(counts.values())} cases, {sum(failed.values())} failed, {duration:.0f} s")
    for signature, each in sorted(failures.items(), key=lambda item: -len(item[1])):
        case, result = each[0]
        print(f"\n{len(each)} x {signature}\n  {case.name}: {case.line:.400}")
        print("  " + "\n  ".join(str(fault)[:300] for fault in result.faults))
    if failures:
        print(f"\nFiles of these cases are in {folder}/")


if __name__ == "__main__":
    sys.exit(main())
