"""Draw docs/picture.svg, which opens the README: teachers, labels, student, and one result of benchmarks/results.

python benchmarks/picture.py

The result is NDCG@10 on Last.FM's clean test targets (results/leaks.md) of eight students, trained on one-hot labels
alone (Base) and by CSRec-M.
"""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
PICTURE = BENCHMARKS.parent / "docs/picture.svg"
LEAKS = BENCHMARKS / "results/leaks.md"
WIDTH, HEIGHT = 960, 330
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


def picture(results: dict[str, tuple[float, float]]) -> str:
    """The SVG, which loads nothing and reads on light and dark pages alike."""
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        *map(_box, BOXES),
        '<text x="244" y="106" class="small">⋮</text>',
        *(f'<path class="arrow" d="{path}"/>' for path in ARROWS),
        '<text x="150" y="274" class="small">one-hot labels: the next item alone</text>',
        *_bars(results),
    ]
    label = "Teachers make soft labels, from which the student learns beside one-hot labels; CSRec-M against Base."
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


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(picture(clean_results(LEAKS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
