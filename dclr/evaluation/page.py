"""report.html: the results of evaluations on one page that opens without a network, pictures and all."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dclr.compare import compare, guesses, heading, measured, read_result
from dclr.evaluation.modes import MODES
from dclr.files import whole
from dclr.metrics import Metric
from dclr.text import plain

PERCENT = Metric("percent")
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
            [plain(p["true"], 80), plain(p["named"], 80), str(p["count"]), PERCENT.text(p["share"])] for p in result["confused"]
        ]
        text += "<details><summary>Classes that are most often taken for another</summary>"
        text += _table([["true class", "named", "videos", "per cent of the true class"], *rows], head=True) + "</details>"
    if "runs" in result:
        text += (
            f"<p><small>The mean of {', '.join(map(html.escape, result['runs']))}; ± is the deviation over them.</small></p>"
        )
    captions = {name: caption for mode in MODES.values() for name, caption in mode.captions.items()}
    for name in result.get("pictures", []):
        path = folder / Path(name).name
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            caption = html.escape(captions.get(name, name))
            text += (
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
            )
    return text + f"<details><summary>Every option</summary><pre>{html.escape(json.dumps(options, indent=1))}</pre></details>"


def _numbers(result: dict[str, Any]) -> list[list[str]]:
    """The table of numbers, with intervals, deviations and a baseline where the result has them."""
    metrics, guessed = measured(result), guesses(result)
    random, several = result.get("random") or {}, result.get("deviation") or {}
    mixed = any(metric.unit != PERCENT.unit for metric in metrics.values())
    head = ["", "value" if mixed else "per cent", "95 % interval", *(["± over draws, folds or seeds"] if several else [])]
    rows = [[*head, *(["random weights"] if random else [])]]

    def said(metric: Metric, value: float) -> str:
        return metric.text(value) + metric.unit * mixed

    for name, metric in metrics.items():
        low_high = result.get("interval", {}).get(name)
        interval = "" if low_high is None else " - ".join(said(metric, end) for end in low_high)
        row = [heading(name, metric), said(metric, result[name]), interval]
        if several:
            row.append(said(metric, several[name]) if name in several else "")
        rows.append([*row, *([said(metric, random[name])] if name in random else [])])
    rows += [[name, said(PERCENT, value), ""] for name, value in guessed.items()]
    return rows


def _table(rows: Sequence[Sequence[str]], head: bool = False) -> str:
    def line(row: Sequence[str], cell: str) -> str:
        return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) + "</tr>"

    body = "".join(line(row, "td") for row in rows[head:])
    return f"<table>{line(rows[0], 'th') if head else ''}{body}</table>"
