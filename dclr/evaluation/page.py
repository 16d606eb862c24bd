"""report.html: the results of evaluations on one page that opens without a network, pictures and all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclr import page
from dclr.compare import RESULT, compare, guesses, heading, measured, read_result
from dclr.evaluation.baseline import against, read, verdict
from dclr.evaluation.modes import MODES
from dclr.metrics import Metric, interval
from dclr.page import Cell, Html, element, joined
from dclr.parse import parsing
from dclr.text import duration, plain

PERCENT = Metric("percent")
CLIP_OPTIONS = (
    "frames",
    "stride",
    "clip_fps",
    "size",
    "cpv",
    "test_clips",
    "crops",
    "average",
    "min_scale",
    "flip",
    "cross_cuts",
)
RANDOM = "random weights"


def write(out: Path, folders: Sequence[Path], beside: Path | None = None) -> Path:
    """Write ``out/report.html`` from the result.json and the pictures of each folder, a table of all of them first; returns
    its path. A baseline ``beside`` them, with folders of the same names, takes the place of that in their results."""
    results = {folder: read_result(folder) for folder in folders}
    for folder, result in results.items():
        if beside:
            result["baseline"] = against(read(folder)[1], measured(result), beside / folder.relative_to(out))
    parts = []
    for folder, result in results.items():
        with parsing(str(folder / RESULT), "a result of train_eval.py"):
            parts.append(_section(folder, result))
    summary = element("pre", compare(list(results))) if len(results) > 1 else Html()
    return page.write(out, out.resolve().name, [summary, *parts])


def folders(out: Path) -> list[Path]:
    """The folders of the results that the page of ``out`` shows: its own and those it is the mean of, or those within."""
    if not (out / "result.json").exists():
        return sorted(path.parent for path in out.glob("*/result.json"))
    return [out, *(out / Path(name).name for name in read_result(out).get("runs", []))]


def _section(folder: Path, result: dict[str, Any]) -> Html:
    parts = [element("h2", f"{result['mode']} on {plain(result['label'], 80)}")]
    parts += [element("p", sentence, class_="lead") for sentence in summary(result)]
    parts += [page.facts(_said(result)), _numbers(result)]
    if "runs" in result:
        parts.append(element("small", f"The mean of {', '.join(result['runs'])}; ± is the deviation over them."))
    parts += _classes(result)
    captions = {name: caption for mode in MODES.values() for name, caption in mode.captions.items()}
    parts += [page.picture(folder / Path(name).name, captions.get(name, name)) for name in result.get("pictures", [])]
    if result.get("confused"):
        rows: list[list[Cell]] = [
            [plain(p["true"], 80), plain(p["named"], 80), (str(p["count"]), p["count"]), (PERCENT.text(p["share"]), p["share"])]
            for p in result["confused"]
        ]
        head = ("true class", "named", "videos", "per cent of the true class")
        parts.append(page.details("Classes that are most often taken for another", page.table(head, rows, sort=True)))
    parts.append(page.details("Every option", element("pre", json.dumps(result["options"], indent=1))))
    return joined(parts)


def _said(result: dict[str, Any]) -> dict[str, str]:
    """What was evaluated, when, on what and how: the head of a section."""
    options, said = result["options"], dict[str, str]()
    if "date" in result:  # as in all but results of earlier versions
        said["made"] = f"{result['date'].replace('T', ' ')}, in {duration(result['seconds'])}"
        said["command"] = page.command(result["command"])
        said["hardware"] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["hardware"].items())
    clips = {name: options[name] for name in CLIP_OPTIONS if options.get(name) is not None}
    said["clips"] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in clips.items())
    said["precision"] = result.get("precision", options.get("precision", "?"))
    weights = result["weights"] if isinstance(result["weights"], str) else "several seeds"
    said["weights"] = f"{result['pretrained']} ({weights})"
    said["network"] = f"{result['arch']}, width {result['width']}"
    said["set"] = f"{options['shards']} ({result['set']})"
    said["splits"] = " / ".join("+".join(options.get(name, ["folds"])) for name in ("train_split", "test_split"))
    said["test videos"] = f"{result['videos']}" + (f", {len(result['skipped'])} skipped" if result["skipped"] else "")
    said["code"] = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    if beside := result.get("baseline"):
        said["baseline"] = (
            f"{beside['run']}: {beside['mode']}, {beside['pretrained']}, {beside['arch']}, width {beside['width']}"
        )
    for kind, names in result.get("unseen", {}).items():
        said[f"{kind} unseen in training, counted wrong"] = ", ".join(plain(name, 80) for name in names)
    return said


def _others(result: dict[str, Any]) -> dict[str, tuple[dict[str, float], dict[str, Any]]]:
    """What stands beside the numbers: by its name its own numbers, and the differences to it."""
    found = {}
    if result.get("random"):
        found[RANDOM] = (result["random"], result.get("random_paired", {}))
    if result.get("baseline"):
        found["baseline"] = (result["baseline"]["numbers"], result["baseline"])
    return found


def _numbers(result: dict[str, Any]) -> Html:
    """The table of numbers, with bars, intervals, deviations, and what stands beside them."""
    metrics, guessed, several = measured(result), guesses(result), result.get("deviation") or {}
    mixed, others = any(metric.unit != PERCENT.unit for metric in metrics.values()), _others(result)
    head = ["", "value" if mixed else "per cent", "95 % interval", *(["± over draws, folds or seeds"] if several else [])]
    for name in others:
        head += [name, "difference"]
    ends = result.get("interval", {})
    most = axis([high for _, high in ends.values()])

    def said(metric: Metric, value: float) -> str:
        return metric.text(value) + metric.unit * mixed

    rows: list[list[Cell]] = []
    for name, metric in metrics.items():
        between: Cell = ""
        if name in ends:
            shown = f"{said(metric, ends[name][0])} - {said(metric, ends[name][1])}"
            between = joined([shown, page.bar(result[name], ends[name], most)])
        row: list[Cell] = [heading(name, metric), said(metric, result[name]), between]
        if several:
            row.append(said(metric, several[name]) if name in several else "")
        for numbers, apart in others.values():
            row += [said(metric, numbers[name]) if name in numbers else "", _apart(name, apart)]
        rows.append(row)
    rows += [[name, said(PERCENT, value), *[""] * (len(head) - 2)] for name, value in guessed.items()]
    parts = [page.table(head, rows)]
    if others:
        parts.append(element("small", "Differences are of the same videos, one by one, with their 95 % interval: "
                             "higher or lower where it excludes 0."))  # fmt: skip
    return joined(parts)


def _apart(name: str, apart: Mapping[str, Any]) -> Html:
    """A difference, its interval, and whether that excludes 0."""
    if name not in apart.get("interval", {}):
        return Html()
    value, low, high = (f"{100 * number:+.1f}" for number in (apart["difference"][name], *apart["interval"][name]))
    found = verdict(apart["interval"][name])
    return joined([element("span", f"{value} {found}", class_=found.split()[0]), element("small", f"{low} to {high}")])


def axis(values: Sequence[float]) -> float:
    """The end of an axis from 0 that holds ``values`` in 0..1: the next tenth.

    >>> axis([0.05, 0.32]), axis([])
    (0.4, 1.0)
    """
    return min(1.0, max(1, int(10 * max(values) + 0.999)) / 10) if values else 1.0


def _classes(result: dict[str, Any]) -> list[Html]:
    """A table of the classes that sorts: how many videos each has, how many are named right, and what they are taken for."""
    names, counts_CC = result.get("class_names"), result.get("confusion")
    if not names or not counts_CC:
        return []
    tested = [(name, n, row, sum(row)) for n, (name, row) in enumerate(zip(names, counts_CC, strict=True)) if sum(row)]
    ends = {n: interval(row[n] / videos, videos) for _, n, row, videos in tested}
    most, rows = axis([high for _, high in ends.values()]), list[list[Cell]]()
    for name, n, row, videos in tested:
        wrong = [count * (other != n) for other, count in enumerate(row)]
        other = max(range(len(row)), key=wrong.__getitem__)
        taken = f"{plain(names[other], 80)} ({wrong[other]})" if wrong[other] else ""
        share, (low, high) = row[n] / videos, ends[n]
        between = joined([f"{PERCENT.text(low)} - {PERCENT.text(high)}", page.bar(share, ends[n], most)])
        rows.append([plain(name, 80), (str(videos), videos), (PERCENT.text(share), share), (between, low), taken])
    head = ("class", "test videos", "per cent right", "95 % interval", "most often taken for")
    return [element("h3", "Each class"), page.table(head, rows, sort=True)]


def summary(result: Mapping[str, Any]) -> list[str]:
    """What the bias report shows, in a sentence or two for each kind of label."""
    if result["mode"] != "bias":
        return []
    kinds = dict.fromkeys(name.partition(": ")[0] for name in measured(result))
    return [_of_kind(result, kind) for kind in kinds if f"{kind}: whole" in result]


def _of_kind(result: Mapping[str, Any], kind: str) -> str:
    """In what order the numbers are looked at: is anything named at all, by more than random weights, and from what."""
    ends, random = result.get("interval", {}), result.get("random") or {}

    def said(name: str, numbers: Mapping[str, Any] = result) -> str:
        return f"{PERCENT.text(numbers[f'{kind}: {name}'])} %"

    def above(name: str, level: float) -> bool:
        low, _ = ends.get(f"{kind}: {name}", (result[f"{kind}: {name}"],) * 2)
        return low > level

    guess = max(value for name, value in guesses(dict(result)).items() if name.startswith((f"{kind}: ", "chance", "majority")))
    told = f"{kind}: the network names {said('whole')} of the whole clips"
    if not above("whole", guess):
        return (
            f"{told}, which is not above guessing ({PERCENT.text(guess)} %): what it does without motion or scene says nothing."
        )
    told += f" (guessing {PERCENT.text(guess)} %"
    if random:
        whole = result.get("random_paired", {}).get("interval", {}).get(f"{kind}: whole", (0, 0))
        told += f", random weights {said('whole', random)})"
        if whole[0] <= 0:
            ahead = "random weights are ahead" if whole[1] < 0 else "random weights are not told apart from it"
            return f"{told}: {ahead}, so nothing here was gained by training."
        told += ", more than random weights"
    else:
        told += ")"
    static, kept = said("static"), []
    if not above("static", guess):
        kept.append(f"of one frame, repeated, {static}, which is guessing: it needs what changes from frame to frame")
    elif ends.get(f"{kind}: static", (0, 1))[1] >= ends.get(f"{kind}: whole", (0, 1))[0]:
        kept.append(f"of one frame, repeated, {static}, which is not told apart: still pictures are enough")
    else:
        kept.append(f"of one frame, repeated, {static}: still pictures are a part of it")
    if f"{kind}: swap as foreground" in result:
        front, behind = (result[f"{kind}: swap as {whose}"] for whose in ("foreground", "background"))
        wins = "what moves" if front > behind else "the background"
        kept.append(
            f"where what moves stands over another video's background it follows {wins} ({said('swap as foreground')} against "
            f"{said('swap as background')})"
        )
    if f"{kind}: appearance removed" in result:
        seen = "motion alone is enough for that" if above("appearance removed", guess) else "not told apart from guessing"
        kept.append(f"of noise that moves as the clip does {said('appearance removed')}, {seen}")
    return f"{told}; {'; '.join(kept)}."
