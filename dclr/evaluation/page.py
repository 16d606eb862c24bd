"""report.html: the results of evaluations on one page that opens without a network, pictures and all."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dclr.compare import ACCURACIES, compare, guesses, read_result
from dclr.files import whole
from dclr.text import plain

TITLES = {
    "confusion.png": "Confusion matrix",
    "classes.png": "Each class, with 95 % intervals and its number of test videos",
    "neighbours.png": "Test videos, and the training videos nearest to each",
    "maps.png": "Where the network is active",
    "curves.png": "Training curves",
    "bias.png": "Top-1 of the probe by what the test clips lack",
    "conditions.png": "A test clip under each condition",
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ccc;text-align:left}
td+td{font-variant-numeric:tabular-nums}figure{margin:1.5em 0}img{max-width:100%}figcaption,small{color:#666}
summary{cursor:pointer}pre{overflow-x:auto;font-size:12px}"""


def write(out: Path, folders: Sequence[Path]) -> Path:
    """Write ``out/report.html`` from the result.json and the pictures of each folder, a table of all of them first; returns
    its path."""
    parts = [_section(folder, read_result(folder)) for folder in folders]
    title = html.escape(out.resolve().name)
    document = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    summary = f"<pre>{html.escape(compare(list(folders)))}</pre>" if len(folders) > 1 else ""
    document += f"</head><body><h1>{title}</h1>{summary}{''.join(parts)}</body></html>\n"
    path = out / "report.html"
    with whole(path) as unfinished:
        unfinished.write_text(document, encoding="utf-8")
    return path


def _section(folder: Path, result: dict[str, Any]) -> str:
    options = result["options"]
    splits = " / ".join("+".join(options.get(name, ["folds"])) for name in ("train_split", "test_split"))
    said = {
        "weights": f"{result['pretrained']} ({result['weights'] if isinstance(result['weights'], str) else 'several seeds'})",
        "network": f"{result['arch']}, width {result['width']}",
        "set": f"{options['shards']} ({result['set']})", "splits": splits, "label": result["label"],
        "test videos": str(result["videos"]) + (f", {len(result['skipped'])} skipped" if result["skipped"] else ""),
        "code": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }  # fmt: skip
    if "date" in result:  # as in all but results of earlier versions
        said["made"] = f"{result['date']}, in {result['seconds']:.0f} s"
        said["hardware"] = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["hardware"].items())
        said["command"] = result["command"]
    for kind, names in result.get("unseen", {}).items():
        said[f"{kind} unseen in training, counted wrong"] = ", ".join(plain(name, 80) for name in names)
    text = (
        f"<h2>{html.escape(result['mode'])} on {html.escape(result['label'])}</h2>{_table([list(row) for row in said.items()])}"
    )
    text += _table(_numbers(result), head=True)
    if result.get("confused"):
        rows = [
            [plain(p["true"], 80), plain(p["named"], 80), str(p["count"]), _percent(p["share"])] for p in result["confused"]
        ]
        text += "<details><summary>Classes that are most often taken for another</summary>"
        text += _table([["true class", "named", "videos", "per cent of the true class"], *rows], head=True) + "</details>"
    if "runs" in result:
        text += (
            f"<p><small>The mean of {', '.join(map(html.escape, result['runs']))}; ± is the deviation over them.</small></p>"
        )
    for name in result.get("pictures", []):
        path = folder / Path(name).name
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            caption = html.escape(TITLES.get(name, name))
            text += (
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
            )
    return text + f"<details><summary>Every option</summary><pre>{html.escape(json.dumps(options, indent=1))}</pre></details>"


def _numbers(result: dict[str, Any]) -> list[list[str]]:
    """The table of numbers in per cent, with intervals, deviations and a baseline where the result has them."""
    names = [name for name in result if ACCURACIES.fullmatch(name)]
    random, several = result.get("random") or {}, result.get("deviation") or {}
    head = ["", "per cent", "95 % interval", *(["± over draws, folds or seeds"] if several else [])]
    rows = [[*head, *(["random weights"] if random else [])]]
    for name in names:
        low_high = result.get("interval", {}).get(name)
        row = [name, _percent(result[name]), "" if low_high is None else " - ".join(map(_percent, low_high))]
        if several:
            row.append(_percent(several[name]) if name in several else "")
        rows.append([*row, *([_percent(random[name])] if name in random else [])])
    rows += [[name, _percent(value), ""] for name, value in guesses(result).items()]
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(rows: Sequence[Sequence[str]], head: bool = False) -> str:
    def line(row: Sequence[str], cell: str) -> str:
        return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>"

    body = "".join(line(row, "td") for row in rows[head:])
    return f"<table>{line(rows[0], 'th') if head else ''}{body}</table>"
