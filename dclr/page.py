"""One page that opens without a network: what the reports of evaluations and of trainings are made of."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dclr.errors import InputError
from dclr.files import whole

REPORT = "report.html"
POINTS, DOTTED = 400, 30  # of a curve, at most; below so many each has a dot


class Html(str):
    """Text that is markup already. Any other text is escaped."""


Cell = str | tuple[str, float]  # a table's: its text, or with it the number that it sorts by
Point = tuple[float, float]

STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f4f6f8; --text: #1b1f24; --soft: #59626d; --line: #d8dde3;
  --up: #14713f; --down: #a8281e; --c0: #2460c8; --c1: #b9520a; --c2: #187a55; --c3: #a32f86; --c4: #7a6400; --c5: #5b4bc4;
  --c6: #0e7490; --c7: #8a4b33; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --card: #1f2327; --text: #e7e9ec; --soft: #a0a9b4;
  --line: #363d45; --up: #5fcf92; --down: #ff8f84; --c0: #77aaff; --c1: #ffa45c; --c2: #5fcfa0; --c3: #f08fd4; --c4: #dcc14a;
  --c5: #aea2ff; --c6: #5cc8e0; --c7: #d9a088; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1160px; margin: 0 auto; padding: 1.2em 1em 4em;
  background: var(--page); color: var(--text); overflow-wrap: anywhere; }
h1 { font-size: 1.6em; margin: .2em 0; }
h2 { font-size: 1.25em; margin: 2em 0 .4em; border-top: 1px solid var(--line); padding-top: 1em; }
h3 { font-size: 1em; margin: 1.8em 0 .5em; }
p { max-width: 80ch; }
small, .picture + figcaption { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(6em, max-content) 1fr; gap: .15em 1em; margin: 1em 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
.scroll, .picture, pre { overflow-x: auto; }
table { border-collapse: collapse; margin: .6em 0; }
td, th { padding: .3em 1.2em .3em 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td + td { white-space: nowrap; }
td:first-child { min-width: 7em; overflow-wrap: normal; }
.lead { background: var(--card); border-radius: 8px; padding: .6em .8em; max-width: none; }
th { font-size: 13px; vertical-align: bottom; overflow-wrap: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td small { display: block; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--c0); }
th button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.higher { color: var(--up); }
.lower { color: var(--down); }
.bar { display: block; position: relative; width: 11em; height: .9em; margin: .25em 0; background: var(--card); }
.bar i, .bar b { position: absolute; left: 0; top: 0; bottom: 0; width: var(--v); background: var(--c0); opacity: .7; }
.bar b { left: var(--l); width: calc(var(--h) - var(--l)); top: .35em; bottom: .35em; background: var(--text); opacity: 1; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7em; margin: 1em 0; }
.tiles div, .charts figure { background: var(--card); border-radius: 8px; padding: .6em .8em; }
.tiles b { display: block; font-size: 1.45em; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: .9em; }
figure { margin: 1.2em 0; }
.charts figure { margin: 0; }
.charts figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg line { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg polyline.raw { stroke-width: 1; opacity: .3; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1em; margin: .2em 0 0; padding: 0; font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }
.picture img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 4px; }
.share { display: flex; height: 1.4em; border-radius: 6px; overflow: hidden; max-width: 600px; }
summary { cursor: pointer; margin: .6em 0; }
code, pre { font-size: 12px; }
code span { display: inline-block; max-width: 100%; }
@media (max-width: 600px) { table { font-size: 13px; } td, th { padding-right: .6em; }
  td:first-child { min-width: 5em; } .bar { width: 5.6em; } }
"""
STYLE += "".join(  # the colours of lines
    f".c{n} {{ stroke: var(--c{n}); }} i.c{n} {{ background: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); }}\n"
    for n in range(8)
)
SCRIPT = """
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const numeric = head.className === "n", now = head.getAttribute("aria-sort");
    const down = now ? now === "ascending" : numeric;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.sort((a, b) => (numeric ? value(a) - value(b) : value(a).localeCompare(value(b))) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}
"""
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# a browser runs nothing that a name or a setting smuggled in, and asks nobody for anything
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'"
HEAD = f"""<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,"><style>{STYLE}</style>"""


def write(out: Path, title: str, body: Sequence[Html]) -> Path:
    """Write ``out/report.html``; returns its path. Raises InputError where that cannot be written to."""
    path, named = out / REPORT, escaped(title)
    text = f'<!doctype html>\n<html lang="en"><head><title>{named}</title>{HEAD}</head><body><h1>{named}</h1>{"".join(body)}'
    try:
        with whole(path) as unfinished:
            unfinished.write_text(f"{text}<script>{SCRIPT}</script></body></html>\n", "utf-8", "replace")
    except PermissionError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); copy the folder to a place of yours") from None
    return path


def escaped(text: str) -> Html:
    return text if isinstance(text, Html) else Html(html.escape(text))


def element(name: str, text: str, **attributes: str) -> Html:
    """``<name attributes>text</name>``; ``class_`` is the attribute class, ``data_v`` data-v."""
    said = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{said}>{escaped(text)}</{name}>")


def joined(parts: Sequence[str]) -> Html:
    return Html("".join(map(escaped, parts)))


def facts(said: Mapping[str, str]) -> Html:
    """A list of names and what they are."""
    return element("dl", joined([joined([element("dt", name), element("dd", text)]) for name, text in said.items()]))


def tiles(said: Mapping[str, str]) -> Html:
    """The numbers that one wants first, large."""
    inside = [element("div", joined([element("b", value), name])) for name, value in said.items()]
    return element("div", joined(inside), class_="tiles")


def command(text: str) -> Html:
    """A command that breaks between its words, and within one that is wider than the window alone."""
    return element("code", joined([joined([element("span", word), " "]) for word in text.split(" ")]))


def details(summary: str, text: str) -> Html:
    return element("details", joined([element("summary", summary), text]))


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], sort: bool = False) -> Html:
    """A table; with ``sort`` a click on a heading sorts it. A column whose first cell has a number is one of numbers."""
    numeric = [isinstance(cell, tuple) for cell in rows[0]] if rows else [False] * len(head)

    def shown(cell: Cell) -> Html:
        return element("td", cell) if isinstance(cell, str) else element("td", cell[0], class_="n", data_v=f"{cell[1]:.9g}")

    heads = [element("button", text, type="button") if sort else text for text in head]
    first = [element("th", text, **({"class_": "n"} if n else {})) for text, n in zip(heads, numeric, strict=True)]
    body = [element("tr", joined(list(map(shown, row)))) for row in rows]
    inside = joined([element("thead", element("tr", joined(first))), element("tbody", joined(body))])
    return element("div", element("table", inside, **({"class_": "sort"} if sort else {})), class_="scroll")


def bar(value: float, interval: Sequence[float], most: float) -> Html:
    """A bar of ``value`` with its interval on an axis from 0 to ``most``."""
    v, low, high = (f"{100 * number / most:.2f}%" for number in (value, *interval))
    return Html(f'<span class="bar" style="--v:{v};--l:{low};--h:{high}"><i></i><b></b></span>')


def picture(path: Path, caption: str) -> Html:
    """The PNG with its caption; nothing where it is not there, or whoever draws it has not finished."""
    data = path.read_bytes() if path.is_file() else b""
    if not data.startswith(b"\x89PNG") or b"IEND" not in data[-12:]:
        return Html()
    least = min(int.from_bytes(data[16:20]), 640)  # pixels of its width; on a phone it scrolls within its frame
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    shown = Html(f'<img alt="{html.escape(caption)}" src="{source}" style="min-width:{least}px">')
    return element("figure", joined([element("div", shown, class_="picture"), element("figcaption", caption)]))


def legend(names: Sequence[str]) -> Html:
    """What the colours are, in their order."""
    return element("ul", joined([element("li", joined([_colour(n), name])) for n, name in enumerate(names)]), class_="legend")


def _colour(n: int, **more: str) -> Html:
    return element("i", "", class_=f"c{n % 8}", **more)


def shares(parts: Mapping[str, float]) -> Html:
    """Parts of a whole, side by side."""
    segments = [_colour(n, style=f"width:{100 * part:.2f}%") for n, part in enumerate(parts.values())]
    names = [f"{name} {part:.0%}" for name, part in parts.items()]
    return joined([element("div", joined(segments), class_="share"), legend(names)])


def curves(title: str, lines: Mapping[str, Sequence[Point]], along: str, percent: bool = False) -> Html:
    """A chart of values over ``along``: each line pale as it is, and strong its running mean, whose end the legend gives.

    Without any point there is no chart."""
    kept = {name: np.array(points, float) for name, points in lines.items() if points}
    drawn = {name: (points[:, 0], points[:, 1] * (100 if percent else 1)) for name, points in kept.items()}
    if not drawn:
        return Html()
    means = {name: running_mean(y) for name, (_, y) in drawn.items()}
    every_x = np.concatenate([x for x, _ in drawn.values()])
    every_y = np.concatenate([*means.values(), *(np.percentile(y, (2, 98)) for _, y in drawn.values())])
    (left, right), (low, high) = ((every.min(), every.max()) for every in (every_x, every_y))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant, whose running mean is rounded
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2

    def place(x: np.ndarray, y: np.ndarray) -> list[tuple[str, str]]:
        across = 46 + 306 * (x - left) / (right - left or 1)
        down = 176 - 166 * (np.clip(y, low, high) - low) / (high - low or 1)
        return [(f"{a:.1f}", f"{d:.1f}") for a, d in zip(across, down, strict=True)]

    marks = np.array(ticks(low, high))
    parts = [
        f'<line x1="46" x2="352" y1="{at}" y2="{at}"/><text x="41" y="{at}" dy="4" text-anchor="end">{short(tick)}</text>'
        for tick, (_, at) in zip(marks, place(np.full(len(marks), left), marks), strict=True)
    ]
    marks = np.array(ticks(left, right))
    parts += [
        f'<text x="{at}" y="192" text-anchor="middle">{short(tick)}</text>'
        for tick, (at, _) in zip(marks, place(marks, np.full(len(marks), low)), strict=True)
    ]
    parts.append(f'<text x="352" y="207" text-anchor="end">{html.escape(along)}</text>')
    for n, (name, (x, y)) in enumerate(drawn.items()):
        seen = thin(len(x))
        for style, values in (("raw ", y), ("", means[name])):
            points = " ".join(map(",".join, place(x[seen], values[seen])))
            parts.append(f'<polyline class="{style}c{n % 8}" points="{points}"/>')
        for across, down in place(x, means[name]) if len(x) < DOTTED else ():
            parts.append(f'<circle class="c{n % 8}" cx="{across}" cy="{down}" r="3"/>')
    drawing = f'<svg viewBox="0 0 360 210" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    ends = [joined([f"{name} " * (len(means) > 1), element("b", short(mean[-1]))]) for name, mean in means.items()]
    caption = element("figcaption", title + ", per cent" * percent)
    return element("figure", joined([caption, Html(drawing), legend(ends)]))


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of a twentieth of the values around each, of fewer at the ends; of few values each is its own."""
    width = len(values) // 40
    sums, at = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values))
    low, high = np.maximum(at - width, 0), np.minimum(at + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def thin(count: int) -> np.ndarray:
    """The places of at most :data:`POINTS` of so many points, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from ``low`` to ``high``.

    >>> ticks(0.3, 9.7), ticks(5, 5)
    ([2.0, 4.0, 6.0, 8.0], [5])
    """
    if not 1e-9 * max(abs(low), abs(high)) < high - low < math.inf:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few letters.

    >>> [short(value) for value in (0, 12345, 0.000123456, 63.4567)]
    ['0', '12.3k', '1.2e-4', '63.5']
    """
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    if abs(value) >= 1e4:
        return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
