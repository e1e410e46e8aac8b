"""The evaluators in plain Python, one detection at a time: slow, but short enough to check by eye.

This file states the rules, and the package must return the same numbers. It takes the same `Protocol` and COCO dicts.
Python floats are the evaluators' float64; numpy is used only for exp, log and mean, where the evaluators use it.
"""

from __future__ import annotations

import math

import numpy as np

RANGES_OPEN = 1 - 1e-10
POINTS = np.exp(np.arange(np.log(0.01), np.log(1.0) + 1e-10, np.log(1.0 / 0.01) / 8)).tolist()
RECALLS = np.linspace(0.0, 1.0, 101).tolist()


def evaluate(gt, dt, protocol):
    """Return the content of `Scores.to_json`, and of `Scores.precision_json` under "precision"."""
    values = {"protocol": protocol.name, "AP": None, "AR": None, "AP_counts": None}
    values |= {"MR": None, "MR_counts": None, "recall_at_fppi": None, "precision": {}}
    if protocol.precision is not None:
        rules = protocol.precision
        for key in ("AP", "AR", "AP_counts", "precision"):
            values[key] = {name: {} for name in rules.areas}
        for name, area in rules.areas.items():
            for iou in rules.ious:
                ap, ar, counts, precision = _average_precision(gt, dt, rules, area, iou)
                label = f"{iou:.2f}"
                values["AP"][name][label], values["AR"][name][label] = ap, ar
                values["AP_counts"][name][label], values["precision"][name][label] = counts, precision
    if protocol.miss_rate is not None:
        rules = protocol.miss_rate
        for key in ("MR", "MR_counts", "recall_at_fppi"):
            values[key] = {name: {} for name in rules.setups}
        for name, setup in rules.setups.items():
            for iou in rules.ious:
                label = f"{iou:.2f}"
                row = _miss_rate(gt, dt, rules, setup, iou)
                values["MR"][name][label], values["recall_at_fppi"][name][label], values["MR_counts"][name][label] = row
    return values


def _average_precision(gt, dt, rules, area, iou):
    precisions, recalls = [], []
    counts = {"n_gt": 0, "tp": 0, "fp": 0, "ignored_dt": 0}
    for category in _ids(gt["categories"]):
        judged, objects = [], 0
        for image in _ids(gt["images"]):
            anns = _of(gt["annotations"], image, category)
            found = _best(_of(dt, image, category), rules.max_detections)
            ignored = [_flagged(a, rules) or not area[0] <= _area(a) <= area[1] for a in anns]
            objects += ignored.count(False)
            judged += _judge_for_precision(anns, ignored, found, rules, area, iou)
        judged.sort(key=lambda row: -row[0])  # stable
        counts["n_gt"] += objects
        for verdict in ("tp", "fp", "ignored_dt"):
            counts[verdict] += sum(row[1] == verdict for row in judged)
        if objects:
            precision, recall = _curve(judged, objects)
            precisions.append(precision)
            recalls.append(recall)
        else:
            precisions.append([-1.0] * 101)
            recalls.append(-1.0)
    known = [p for precision in precisions for p in precision if p > -1]
    known_recalls = [r for r in recalls if r > -1]
    ap = sum(known) / len(known) if known else -1.0
    ar = sum(known_recalls) / len(known_recalls) if known_recalls else -1.0
    return ap, ar, counts, precisions


def _judge_for_precision(anns, ignored, found, rules, area, iou):
    """Return (score, verdict) of each detection of one image and category."""
    threshold = min(iou, RANGES_OPEN)
    order = [i for i in range(len(anns)) if not ignored[i]] + [i for i in range(len(anns)) if ignored[i]]
    taken = set()
    rows = []
    for det in found:
        best, match = threshold, None
        for i in order:
            if i in taken and not anns[i].get("iscrowd"):
                continue
            if match is not None and not ignored[match] and ignored[i]:
                break
            overlap = _overlap(det["bbox"], anns[i]["bbox"], anns[i].get("iscrowd"))
            if overlap >= best:
                best, match = overlap, i
        if match is None and rules.iod:
            bar = 2 * threshold / (1 + threshold) if rules.iod_stricter else threshold
            best = -1.0
            for i in order:
                if ignored[i]:
                    overlap = _overlap(det["bbox"], anns[i]["bbox"], anns[i].get("iscrowd"))
                    iod = _to_iod(overlap, _area(anns[i]), det)
                    if anns[i].get("iscrowd") and not rules.iod_twice_for_crowds:
                        iod = overlap
                    if iod > best:
                        best, candidate = iod, i
            if best >= bar:
                match = candidate
        size = det["bbox"][2] * det["bbox"][3]
        verdict = "fp" if area[0] <= size <= area[1] else "ignored_dt"
        if match is not None:
            taken.add(match)
            if ignored[match]:
                verdict = "ignored_dt"
            elif anns[match]["id"] != 0 or rules.id_zero_matches:
                verdict = "tp"
        rows.append((det["score"], verdict))
    return rows


def _curve(judged, objects):
    """Return the precision at 101 recalls and the final recall."""
    hits = falses = 0
    recall, precision = [], []
    for _, verdict in judged:
        hits += verdict == "tp"
        falses += verdict == "fp"
        recall.append(hits / objects)
        precision.append(hits / (falses + hits + 2.0**-52))
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    at = []
    for wanted in RECALLS:
        i = next((i for i, r in enumerate(recall) if r >= wanted), None)
        at.append(0.0 if i is None else precision[i])
    return at, recall[-1] if recall else 0.0


def _miss_rate(gt, dt, rules, setup, iou):
    images = _ids(gt["images"])
    points = []
    counts = {"n_gt": 0, "tp": 0, "fp": 0, "ignored_dt": 0, "n_images": len(images)}
    for category in _ids(gt["categories"]):
        judged, objects = [], 0
        for image in images:
            anns = _of(gt["annotations"], image, category)
            found = _best(_of(dt, image, category), rules.max_detections)
            ignored = [_ignored_for_miss_rate(a, rules, setup) for a in anns]
            objects += ignored.count(False)
            low, high = setup.size[0] / 1.25, setup.size[1] * 1.25
            found = [det for det in found if low <= _size(det, rules.by_height) < high]
            judged += _judge_for_miss_rate(anns, ignored, found, rules, iou)
        judged.sort(key=lambda row: -row[0])
        counts["n_gt"] += objects
        for verdict in ("tp", "fp", "ignored_dt"):
            counts[verdict] += sum(row[1] == verdict for row in judged)
        if not objects:
            points.append([-1.0] * 9)
            continue
        hits = falses = 0
        recall, fppi = [], []
        for _, verdict in judged:
            hits += verdict == "tp"
            falses += verdict == "fp"
            recall.append(hits / objects)
            fppi.append(falses / len(images))
        row = []
        for point in POINTS:
            within = [r for r, f in zip(recall, fppi, strict=True) if f <= point]
            if within:
                row.append(within[-1])
            else:
                row.append(recall[-1] if recall and rules.wrap_first_point else 0.0)
        points.append(row)
    misses = [1 - r for row in points for r in row if r > -1]
    if not misses:
        return -1.0, points, counts
    rate = 0.0 if 0.0 in misses else math.exp(sum(map(math.log, misses)) / len(misses))
    return rate, points, counts


def _judge_for_miss_rate(anns, ignored, found, rules, iou):
    threshold = min(iou, RANGES_OPEN)
    taken = set()
    rows = []
    for det in found:
        overlaps = [_overlap(det["bbox"], a["bbox"], skip) for a, skip in zip(anns, ignored, strict=True)]
        best, match = threshold, None
        for i, overlap in enumerate(overlaps):
            if not ignored[i] and i not in taken and overlap >= best:
                best, match = overlap, i
        forgiven = any(skip and overlap >= threshold for skip, overlap in zip(ignored, overlaps, strict=True))
        if rules.iod_twice:
            forgiven = forgiven or any(
                skip and _to_iod(overlap, _area(a), det) > 0.5
                for a, skip, overlap in zip(anns, ignored, overlaps, strict=True)
            )
        if match is not None:
            taken.add(match)
            verdict = "tp" if anns[match]["id"] != 0 or rules.id_zero_matches else "fp"
        else:
            verdict = "ignored_dt" if forgiven else "fp"
        rows.append((det["score"], verdict))
    return rows


def _ids(entries):
    return sorted(entry["id"] for entry in entries)


def _of(entries, image, category):
    index = _INDEX.get(id(entries))
    if index is None or index[0] is not entries:
        table = {}
        for entry in entries:
            table.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
        _INDEX.clear() if len(_INDEX) > 8 else None
        _INDEX[id(entries)] = index = (entries, table)
    return index[1].get((image, category), [])


_INDEX = {}


def _best(found, n):
    return sorted(found, key=lambda det: -det["score"])[:n]  # stable


def _area(annotation):
    return annotation["area"]


def _size(entry, by_height):
    width, height = entry["bbox"][2:]
    return height if by_height else math.sqrt(width * height)


def _flagged(annotation, rules):
    return bool(
        annotation.get("iscrowd")
        or (rules.ignore_flag and annotation.get("ignore"))
        or (rules.ignore_uncertain and annotation.get("uncertain"))
    )


def _ignored_for_miss_rate(annotation, rules, setup):
    if rules.by_height:
        size = annotation.get("height", annotation["bbox"][3])
    else:
        size = annotation.get("size", math.sqrt(_area(annotation)))
    seen = annotation.get("vis", annotation.get("vis_bbox") if rules.reads_vis_bbox else None)
    if "vis_ratio" in annotation:
        visible = annotation["vis_ratio"]
    elif seen is not None:
        box = annotation["bbox"]
        visible = (seen[3] / box[3]) * (seen[2] / box[2])
    else:
        visible = 1 - 1e-12
    within = setup.size[0] <= size <= setup.size[1] and setup.visible[0] <= visible <= setup.visible[1]
    uncertain = rules.ignore_uncertain and annotation.get("uncertain")
    return bool(not within or annotation.get("ignore") or uncertain)


def _overlap(a, b, over_detection):
    """Return the IoU of two x, y, width, height boxes; with `over_detection`, the intersection over the area of `a`."""
    width = min(a[2] + a[0], b[2] + b[0]) - max(a[0], b[0])
    height = min(a[3] + a[1], b[3] + b[1]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common, area = width * height, a[2] * a[3]
    return common / (area if over_detection else area + b[2] * b[3] - common)


def _to_iod(overlap, area, det):
    width, height = det["bbox"][2:]
    return overlap / (1 + overlap) * (1 + area / (width * height)) if overlap else 0.0
