"""Charts follow the page's colours, have ids of their own, show names as text, and leave matplotlib as it was."""

import html
import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.axes import Axes

from csrec_dist.report.charts import (
    BASE,
    LONGEST_LABEL,
    STUDENT,
    VARIABLES,
    Legend,
    colours,
    draw_picture,
    panels_figure,
    save_picture,
    series_colours,
    themed,
)
from csrec_dist.report.figures import horizontal_bars

NAMES = ["<script>alert(1)</script>", "_hidden", "$\\frac{$", 'a" id="x', ": #1f2329", "url(#p) & more", "]]>-->"]


def draw(axes: Axes) -> Legend:
    (line,) = axes.plot([1, 2, 3], [0.1, 0.3, 0.2], color=STUDENT)
    axes.set_title(NAMES[0])
    return dict.fromkeys(NAMES, line)


def texts_of(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text\b[^>]*>([^<]*)</text>", svg)]


def tags_of(svg: str) -> str:
    return " ".join(re.findall(r"<[^>]+>", svg))


def test_names_are_text() -> None:
    svg = draw_picture("t", "one", draw).svg
    assert set(NAMES) <= set(texts_of(svg))
    assert "<script" not in svg


def test_colours_are_the_page_s() -> None:
    tags = tags_of(draw_picture("t", "one", draw).svg)
    assert not re.findall(r": (#[0-9a-f]{6})", tags)
    assert "var(--student)" in tags
    assert "currentColor" in tags
    css = (Path(__file__).parents[2] / "csrec_dist/report/templates/page.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    for variable in VARIABLES.values():
        name = variable.removeprefix("var(").removesuffix(")")
        if name != "currentColor":
            assert f"{name}: " in light, name
            assert f"{name}: " in dark, name


def test_light_colours_of_the_page_are_those_of_the_files() -> None:
    css = (Path(__file__).parents[2] / "csrec_dist/report/templates/page.css").read_text()
    for colour, variable in VARIABLES.items():
        name = "--ink" if variable == "currentColor" else variable.removeprefix("var(").removesuffix(")")
        found = re.search(rf"{name}: (#[0-9a-f]+);", css)
        assert found, name
        assert found[1] == colour


def test_two_charts_share_no_id() -> None:
    one, other = (tags_of(draw_picture("t", name, draw).svg) for name in ("one", "two/<b>"))
    ids = set(re.findall(r'\bid="([^"]*)"', one))
    assert ids.isdisjoint(re.findall(r'\bid="([^"]*)"', other))
    used = re.findall(r'(?:xlink:href="#|url\(#)([^")]*)', one)
    assert used
    assert set(used) <= ids


def test_settings_of_the_process_change_nothing_and_are_not_changed() -> None:
    plain = draw_picture("t", "one", draw).svg
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert draw_picture("t", "one", draw).svg == plain
        assert dict(matplotlib.rcParams) == before


def test_files_are_written_only_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert draw_picture("t", "one", draw).file == "one.png"
    assert not list(tmp_path.iterdir())
    draw_picture("t", "one", draw, folder=tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.png"]


def test_panels_are_wide() -> None:
    with themed():
        assert [save_picture(panels_figure(num), "t", "one").is_wide for num in (1, 3)] == [False, True]


@pytest.mark.parametrize("values", [[0.5, 0.25], [-3.0, -1.0], [-2.0, 4.0], [0.0, 0.0]])
def test_bars_have_room_for_their_values(values: list[float]) -> None:
    limits = []

    def bars(axes: Axes) -> Legend:
        horizontal_bars(axes, ["a", "b"], values, BASE, "{:.2f}")
        limits.extend(axes.get_xlim())
        return {}

    texts = texts_of(draw_picture("t", "one", bars).svg)
    assert limits[0] <= min(0.0, *values)
    assert limits[1] > max(0.0, *values)
    assert {f"{value:.2f}".replace("-", "−") for value in values} <= set(texts)


def test_each_model_has_a_colour_of_its_own() -> None:
    found = colours(["base", "student", "teacher-0", "teacher-1", "teachers"])
    assert (found["base"], found["student"]) == (BASE, STUDENT)
    assert len(set(found.values())) == 5
    assert len(set(series_colours([str(number) for number in range(8)]).values())) == 8


def test_long_names_are_cut_in_charts() -> None:
    def bars(axes: Axes) -> Legend:
        horizontal_bars(axes, ["n" * 500], [1.0], BASE)
        return {}

    assert "n" * (LONGEST_LABEL - 1) + "…" in texts_of(draw_picture("t", "one", bars).svg)
