"""Draw docs/picture.svg, which opens the README: teachers, labels, student, and two results of benchmarks/results.

python benchmarks/picture.py

The first is NDCG@10 on Last.FM's clean test targets (results/leaks.md) of eight students, trained on one-hot labels
alone (Base) and by CSRec-M. The second is what CSRec-M gains over Base on the items that simulated users truly
preferred, two of ten interactions being noise (results/known_truth.md; three seeds, intervals over users).
"""

from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.evaluation.significance import Paired, paired

BENCHMARKS = Path(__file__).resolve().parent
PICTURE = BENCHMARKS.parent / "docs/picture.svg"
LEAKS = BENCHMARKS / "results/leaks.md"
TRUTH = BENCHMARKS / "results/ranks/agreement.parquet"
WORLDS = {"argmax_uniform_0.2": "users take the best item", "draw_uniform_0.2": "users draw by preference"}
WIDTH, HEIGHT = 960, 448
GAINS_LEFT, GAINS_TOP, GAINS_WIDTH, LARGEST_GAIN = 200, 360, 320, 2.0
BARS_LEFT, BARS_TOP, ROW, TALLEST = 590, 76, 27, 9.0
BASE, STUDENT, INK, LINE = "#8a94a6", "#3f51b5", "#1d2433", "#5b6578"
STYLE = f"""\
  text {{ font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: {INK}; }}
  .small {{ font-size: 12px; fill: {LINE}; }}
  .title {{ font-weight: 600; }}
  .box {{ fill: #f4f6fb; stroke: {LINE}; stroke-width: 1.2; }}
  .main {{ fill: #e5e9ff; stroke: {STUDENT}; stroke-width: 1.6; }}
  .arrow {{ stroke: {LINE}; stroke-width: 1.6; fill: none; marker-end: url(#head); }}
"""
BOXES = [  # x, y, width, height, class, title, lines below it
    (20, 130, 110, 66, "box", "log", ["histories and", "next items"]),
    (185, 40, 130, 52, "box", "teacher 1", ["its own ranks"]),
    (185, 112, 130, 52, "box", "teacher m", ["its own ranks"]),
    (370, 62, 150, 80, "box", "soft labels", ["factored: exact, m·d", "numbers an example"]),
    (370, 214, 150, 66, "main", "student", ["one-hot mixed with", "soft labels"]),
]
ARROWS = [
    "M130 150 C 155 140, 155 66, 179 66",
    "M130 160 C 155 158, 155 138, 179 138",
    "M315 66 C 340 66, 340 92, 364 92",
    "M315 138 C 340 138, 340 112, 364 112",
    "M445 142 L 445 208",
    "M75 196 C 75 250, 200 250, 364 250",
]


def clean_results(text: str) -> dict[str, tuple[float, float]]:
    """NDCG@10 in percent of Base and CSRec-M by student, from the first table of clean targets in leaks.md."""
    table = text[text.index("Clean (2,735 of 3,173 targets)") :].split("\n\n")[1]
    values = {}
    for line in table.splitlines()[2:]:
        student, base, _, csrec_m, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        values[student] = float(base.split(" / ")[1]), float(csrec_m.split(" / ")[1])
    return values


def true_gains(ranks: pl.DataFrame) -> dict[str, Paired]:
    """NDCG@10 of the true item, Base and CSRec-M with the same weight for all examples, by world; means over seeds."""

    def values(world: str, run: str) -> np.ndarray:
        rows = ranks.filter((pl.col("world") == world) & (pl.col("run") == run))
        gain = pl.when(pl.col("true_rank") <= 10).then(1 / (pl.col("true_rank") + 1).log(2)).otherwise(0.0)
        return rows.group_by("row").agg(gain.mean().alias("ndcg")).sort("row")["ndcg"].to_numpy()

    users = {world: ranks.filter(pl.col("world") == world).unique("row").sort("row")["user"] for world in WORLDS}
    return {
        world: paired(values(world, "Base"), values(world, "plain"), users=users[world].to_numpy()) for world in WORLDS
    }


def picture(results: dict[str, tuple[float, float]], gains: dict[str, Paired]) -> str:
    """The SVG, which loads nothing and reads on light and dark pages alike."""
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        *map(_box, BOXES),
        '<text x="244" y="106" class="small">⋮</text>',
        *(f'<path class="arrow" d="{path}"/>' for path in ARROWS),
        '<text x="150" y="274" class="small">one-hot labels: the next item alone</text>',
        *_bars(results),
        *_gains(gains),
    ]
    label = (
        "Teachers make soft labels, from which the student learns beside one-hot labels; CSRec-M against Base on "
        "Last.FM, and where the truth is known."
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
        f"<style>\n{STYLE}</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _box(box: tuple[int, int, int, int, str, str, list[str]]) -> str:
    x, y, width, height, kind, title, lines = box
    middle = x + width / 2
    texts = [f'<text x="{middle:g}" y="{y + 22}" text-anchor="middle" class="title">{title}</text>']
    for number, line in enumerate(lines):
        texts.append(
            f'<text x="{middle:g}" y="{y + 40 + 16 * number}" text-anchor="middle" class="small">{line}</text>'
        )
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="{kind}"/>' + "".join(texts)


def _bars(results: dict[str, tuple[float, float]]) -> list[str]:
    """Two bars for each student, side by side, with their values."""
    scale = 200 / TALLEST
    parts = [
        f'<text x="{BARS_LEFT}" y="34" class="title">NDCG@10 on clean targets, Last.FM (%)</text>',
        f'<rect x="{BARS_LEFT}" y="46" width="12" height="12" fill="{BASE}"/>'
        f'<text x="{BARS_LEFT + 18}" y="57" class="small">one-hot labels alone</text>',
        f'<rect x="{BARS_LEFT + 150}" y="46" width="12" height="12" fill="{STUDENT}"/>'
        f'<text x="{BARS_LEFT + 168}" y="57" class="small">CSRec-M: with soft labels</text>',
    ]
    for number, (student, (base, csrec_m)) in enumerate(results.items()):
        y, left = BARS_TOP + number * (ROW + 3), BARS_LEFT + 84
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end" class="small">{student}</text>')
        for row, (value, colour) in enumerate(((base, BASE), (csrec_m, STUDENT))):
            top = y + row * 12
            parts.append(f'<rect x="{left}" y="{top}" width="{value * scale:.1f}" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{left + value * scale + 6:.1f}" y="{top + 9}" class="small">{value:.1f}</text>')
    return parts


def _gains(gains: dict[str, Paired]) -> list[str]:
    """For each world the gain in points with its interval, on an axis that begins at 0."""
    scale = GAINS_WIDTH / LARGEST_GAIN
    bottom = GAINS_TOP + 30 * len(gains)
    parts = [
        f'<text x="20" y="{GAINS_TOP - 26}" class="title">Where the truth is known: what CSRec-M gains on the item '
        "that was truly preferred</text>",
        f'<text x="20" y="{GAINS_TOP - 8}" class="small">points of NDCG@10, 95 % interval; simulated logs, two of ten '
        "interactions are noise</text>",
    ]
    for tick in np.arange(0, LARGEST_GAIN + 0.1, 0.5):
        x = GAINS_LEFT + tick * scale
        parts.append(f'<path d="M{x:g} {GAINS_TOP + 4} V {bottom}" stroke="#d9dde6"/>')
        parts.append(f'<text x="{x:g}" y="{bottom + 16}" text-anchor="middle" class="small">{tick:g}</text>')
    for number, (world, gain) in enumerate(gains.items()):
        y = GAINS_TOP + 18 + 26 * number
        low, middle, high = (GAINS_LEFT + 100 * value * scale for value in (gain.low, gain.difference, gain.high))
        parts.append(f'<text x="{GAINS_LEFT - 8}" y="{y + 4}" text-anchor="end" class="small">{WORLDS[world]}</text>')
        parts.append(f'<path d="M{low:.1f} {y} H {high:.1f}" stroke="{STUDENT}" stroke-width="2"/>')
        parts.append(f'<circle cx="{middle:.1f}" cy="{y}" r="5" fill="{STUDENT}"/>')
        text = f"{100 * gain.first:.1f} to {100 * gain.second:.1f}"
        parts.append(f'<text x="{high + 8:.1f}" y="{y + 4}" class="small">{text}</text>')
    return parts


def main() -> None:
    """Write the picture."""
    results = clean_results(LEAKS.read_text(encoding="utf-8"))
    PICTURE.write_text(picture(results, true_gains(pl.read_parquet(TRUTH))), encoding="utf-8")
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
