"""Score detections by a protocol and return the result as the JSON that `tinydet evaluate` writes."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from tinydet._internal.console import plural
from tinydet._internal.progress import Progress
from tinydet.evaluate.average_precision import PrecisionMatcher, PrecisionResult, average_precision
from tinydet.evaluate.calibration import Calibration, fit_calibration
from tinydet.evaluate.classes import ClassTable, score_classes
from tinydet.evaluate.confusion import ConfusionMatrix, confusion_matrix
from tinydet.evaluate.miss_rate import MissRateResult, miss_rate
from tinydet.evaluate.operating_point import OperatingPoints, Wanted, operating_points, parse_wanted
from tinydet.evaluate.protocols import Protocol, choose_protocol
from tinydet.evaluate.tables import GroundTruth, Results, tabulate_ground_truth, tabulate_results


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything that was measured.

    Attributes:
        protocol: the protocol with its switches.
        precision: by size range and IoU threshold; None if the protocol does not measure AP.
        miss_rate: by setup and IoU threshold; None if the protocol does not measure MR.
        truth, results: the ground truth and the detections that were scored.
        matcher: matches them by the rules of AP; None if the protocol does not measure AP.
        notes: remarks for a reader of the scores, such as data that was left out.
    """

    protocol: Protocol
    precision: dict[str, dict[float, PrecisionResult]] | None
    miss_rate: dict[str, dict[float, MissRateResult]] | None
    truth: GroundTruth
    results: Results
    matcher: PrecisionMatcher | None
    notes: tuple[str, ...]

    def ap(self, size: str = "all", iou: float = 0.5) -> float:
        """Return the average precision of a size range at an IoU threshold, as a fraction; -1 without objects.

        Raises:
            ValueError: it was not measured.
        """
        measured = self.precision or {}
        if size not in measured or iou not in measured[size]:
            known = "; ".join(f"{name} at {', '.join(f'{t:g}' for t in at)}" for name, at in measured.items())
            raise ValueError(f"{self.protocol.name} has no AP of {size!r} at IoU {iou}; measured: {known or 'no AP'}")
        return float(measured[size][iou].ap)

    @cached_property
    def classes(self) -> ClassTable | None:
        """The scores of each class; None if the protocol does not measure AP."""
        return None if self.matcher is None else score_classes(self.truth, self.matcher)

    @cached_property
    def confusion(self) -> ConfusionMatrix | None:
        """Which class is detected as which, at the score threshold of `classes`; None if AP is not measured."""
        if self.matcher is None or self.classes is None:
            return None
        return confusion_matrix(self.truth, self.matcher, self.classes.score or 0.0)

    def operating_points(self, wanted: str | Wanted, progress: Progress | None = None) -> OperatingPoints:
        """Choose score thresholds: "f1", "precision=0.9", "recall=0.8" or "false-alarms=0.1" per megapixel.

        Args:
            progress: called with 1 after each class.

        Raises:
            ValueError: another text, a protocol that does not measure AP, or images without a size.
        """
        if isinstance(wanted, str):
            try:
                wanted = parse_wanted(wanted)
            except ArgumentTypeError as error:
                raise ValueError(f"wanted: {error}") from error
        return operating_points(self.truth, self._matcher_of("operating point"), wanted, progress)

    def calibration(self) -> Calibration:
        """Fit a calibration of the scores, and measure calibration errors.

        Raises:
            ValueError: a protocol that does not measure AP, one image, or too few detections.
        """
        return fit_calibration(self.truth, self._matcher_of("calibration"))

    def _matcher_of(self, what: str) -> PrecisionMatcher:
        if self.matcher is None:
            raise ValueError(
                f"{self.protocol.name} does not measure AP, which an {what} needs; choose another protocol"
            )
        return self.matcher

    def to_json(self) -> dict[str, Any]:
        """Return the scores as fractions: those of `sizes_json`, the classes and the confusion matrix.

        A range or class without objects has -1. A quantity that the protocol does not measure is None.
        """
        table, confusion = self.classes, self.confusion
        values: dict[str, Any] = {"mean": None, "excluded": None, "classes": None, "confusion_matrix": None}
        if table is not None and confusion is not None and self.precision is not None:
            values |= {**table.to_json(), "confusion_matrix": confusion.to_json()}
            for c, entry in enumerate(values["classes"]):
                entry["AP"] = _by_range(self.precision, partial(_class_ap, c))
        return {"protocol": self.protocol.name, **values, **self.sizes_json()}

    def sizes_json(self) -> dict[str, Any]:
        """Return the means over classes by size range and IoU threshold ("0.25"), as `to_json`."""
        values: dict[str, Any] = {"AP": None, "AR": None, "AP_counts": None}
        values |= {"MR": None, "MR_counts": None, "recall_at_fppi": None}
        if self.precision is not None:
            values["AP"] = _by_range(self.precision, lambda r: r.ap)
            values["AR"] = _by_range(self.precision, lambda r: r.ar)
            values["AP_counts"] = _by_range(self.precision, _counts)
        if self.miss_rate is not None:
            values["MR"] = _by_range(self.miss_rate, lambda r: r.mr)
            values["MR_counts"] = _by_range(self.miss_rate, lambda r: {**_counts(r), "n_images": r.images})
            values["recall_at_fppi"] = _by_range(self.miss_rate, lambda r: r.recall.tolist())
        return values

    def precision_json(self) -> dict[str, dict[str, list[list[float]]]]:
        """Return the precision at 101 recalls, one list per category; empty if the protocol does not measure AP."""
        return {} if self.precision is None else _by_range(self.precision, lambda r: r.precision.tolist())


def score(truth: GroundTruth, results: Results, protocol: Protocol) -> Scores:
    """Score the tables of `tabulate_ground_truth` and `tabulate_results`."""
    matcher = None if protocol.precision is None else PrecisionMatcher(truth, results, protocol.precision)
    return Scores(
        protocol,
        None if matcher is None else average_precision(matcher),
        None if protocol.miss_rate is None else miss_rate(truth, results, protocol.miss_rate),
        truth,
        results,
        matcher,
        truth.notes + results.notes + tuple(_notes(truth, results, protocol)),
    )


def score_detections(
    ground_truth: Mapping[str, Any],
    detections: list[dict[str, Any]],
    protocol: Protocol,
    *,
    categories: Sequence[str] | None = None,
    image_ids: Collection[Any] | None = None,
    sources: tuple[str, str] = ("ground truth", "detections"),
) -> Scores:
    """Score COCO results against a COCO file, both as read from JSON.

    Args:
        categories: names of the categories to score; None for all.
        image_ids: ids of the images to score; None for all.
        sources: names of the two files for messages.

    Raises:
        ValueError: a missing or malformed entry; the message says which and where.
    """
    truth = tabulate_ground_truth(ground_truth, categories=categories, image_ids=image_ids, source=sources[0])
    return score(truth, tabulate_results(detections, truth, source=sources[1]), protocol)


def evaluate_detections(
    ground_truth: Mapping[str, Any],
    detections: list[dict[str, Any]],
    *,
    protocol: str = "coco",
    categories: Sequence[str] | None = None,
    iod: bool = True,
    keep_uncertain: bool = False,
    max_detections: int | None = None,
) -> dict[str, Any]:
    """Score COCO results against a COCO file, both as read from JSON, and return the scores as JSON.

    The result has the keys of `tinydet evaluate --json`, see docs/evaluation.md.

    Args:
        protocol: a name in `PROTOCOLS`.
        categories: names of the categories to score; None for all.
        iod, keep_uncertain, max_detections: switches of the protocol, see `choose_protocol`.

    Raises:
        ValueError: an unknown protocol; a missing or malformed entry.
    """
    chosen = choose_protocol(protocol, iod=iod, keep_uncertain=keep_uncertain, max_detections=max_detections)
    return score_detections(ground_truth, detections, chosen, categories=categories).to_json()


def _notes(truth: GroundTruth, results: Results, protocol: Protocol) -> list[str]:
    """Name the rules of the protocol that affect this data."""
    notes = []
    if (rules := protocol.precision) is not None:
        if beyond := int((results.rank >= rules.max_detections).sum()):
            notes.append(
                f"not counted for AP: {plural(beyond, 'detection')} beyond the best {rules.max_detections} of an image "
                "and class; --max-detections changes the limit"
            )
        if not rules.ignore_flag and (flagged := int((truth.ignore & ~truth.crowd).sum())):
            notes.append(
                f"{plural(flagged, 'annotation')} marked ignore but not iscrowd; stock COCO counts them as objects "
                "to find, the tinyperson protocols do not"
            )
        if not rules.id_zero_matches and truth.id_zero.any():
            notes.append(
                "an annotation has the id 0, which the published evaluators read as no match, so it cannot be found; "
                "use --protocol tinyperson-fixed, or number the annotations from 1"
            )
    regions = truth.ignore | truth.crowd
    objects = set(truth.category[~regions].tolist())
    if len(truth.category_ids) > 1 and (without_objects := sorted(set(truth.category[regions].tolist()) - objects)):
        names = ", ".join(truth.category_names[c] for c in without_objects)
        notes.append(
            f"{names} has only ignore regions; as in the published evaluators, a region ignores no detection of "
            "another category: give it the category of the objects if it should"
        )
    if protocol.miss_rate is not None and protocol.miss_rate.wrap_first_point and len(truth.image_ids) < 100:
        notes.append(
            f"{len(truth.image_ids)} images are fewer than 100: where the first false positive already exceeds a "
            "point, MR uses the final recall there, as the published evaluator does; tinyperson-fixed uses 0"
        )
    return notes


def _class_ap(c: int, result: PrecisionResult) -> float:
    return result.by_class[c]


def _counts(result: PrecisionResult | MissRateResult) -> dict[str, int]:
    return {"n_gt": result.objects, "tp": result.hits, "fp": result.false, "ignored_dt": result.ignored}


def _by_range(table: Mapping[str, Mapping[float, Any]], value: Any) -> dict[str, dict[str, Any]]:
    return {name: {f"{iou:.2f}": value(result) for iou, result in row.items()} for name, row in table.items()}
