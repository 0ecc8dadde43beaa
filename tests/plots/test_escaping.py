"""Text from data shows as it is: no markup, link, script or formula, judged by independent parsers and a browser."""

from __future__ import annotations

import csv
import html
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from browser import shown_in_browser
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from regimes import classify, draw_map
from regimes.errors import printable
from regimes.plots.escape import markdown_code, markdown_text
from regimes.plots.html_page import write_page
from regimes.record.export import export

SCRIPT = "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
MARKUP = f"{SCRIPT} [a](javascript:b) ](c) **d** `e` | f_ _g $5 \\frac $6 & &lt; https://h www.i.j <!-- ~~k~~"
COMMONMARK = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SIGNS = st.text(st.sampled_from("`*_[]()<>|~&$\\!#:/.=-+\"' \n\tabw;0\x1b") | st.characters(), max_size=40)


def hostile() -> xr.Dataset:
    rng = np.random.default_rng(0)
    knob = "<b>|](x)`$"
    cells = (knob, "density")
    lmc = (cells, -0.2 * rng.random((3, 3)), {"long_name": MARKUP, "units": "1"})
    cka = (cells, 0.6 + 0.4 * rng.random((3, 3)), {"long_name": MARKUP, "units": MARKUP})
    odd = (cells, rng.random((3, 3)), {"units": "=1+1"})
    note = (cells, np.full((3, 3), "=cmd|' /C calc'!A0"))
    coords = {knob: [10, 40, 160], "density": [0.05, 0.1, 0.4]}
    variables = {
        "lmc": lmc,
        "cka": cka,
        "test_error": (cells, 0.5 * rng.random((3, 3))),
        "@odd](x)<i>": odd,
        "note": note,
    }
    data = xr.Dataset(variables, coords, {"title": MARKUP})
    data[knob].attrs = {"hotter": "larger", "long_name": MARKUP, "units": "$"}
    return data


class Elements(HTMLParser):
    """Names of the elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.append(tag)


@given(SIGNS)
def test_markdown_shows_the_text_itself(text: str) -> None:
    shown = html.unescape(COMMONMARK.renderInline(f"a {markdown_text(text)} b"))
    assert " ".join(shown.split()) == " ".join(f"a {printable(text)} b".split())
    assert "<" not in COMMONMARK.renderInline(f"a {markdown_text(text)} b")
    row = COMMONMARK.render(f"| a | b |\n|---|---|\n| {markdown_text(text)} | c |")
    assert row.count("<td>") == 2


@given(SIGNS.filter(lambda text: text.strip() == text != ""))
def test_markdown_code_shows_the_text_itself(text: str) -> None:
    shown = COMMONMARK.renderInline(markdown_code(text))
    assert shown == f"<code>{html.escape(printable(text), quote=False).replace(chr(34), '&quot;')}</code>"


def test_report_and_figures_hold_no_markup_of_the_data(tmp_path: Path) -> None:
    files = draw_map(classify(hostile()), tmp_path)
    page = next(each for each in files if each.name == "README.md").read_text()
    elements = Elements(COMMONMARK.render(page))
    assert set(elements.names) <= {"h1", "h2", "p", "img", "ul", "li", "strong", "code", "em"} | {
        "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert elements.names.count("img") == sum(each.suffix == ".png" for each in files)
    for file in files:
        if file.suffix == ".svg":
            root = ElementTree.parse(file).getroot()
            assert {each.tag.rpartition("}")[2] for each in root.iter()}.isdisjoint(("script", "a", "b", "i", "img"))
    words = "".join(ElementTree.parse(tmp_path / "phase.svg").getroot().itertext())
    assert MARKUP in words


def test_page_holds_no_element_of_the_data(tmp_path: Path) -> None:
    text = write_page(classify(hostile()), tmp_path / "page.html").read_text()
    after = text[text.index("const spec") :]
    assert after.count("<") == after.count("</script>") + after.count("</body>") + after.count("</html>") == 3


def test_page_runs_no_script_of_the_data_in_a_real_browser(tmp_path: Path) -> None:
    shown = shown_in_browser(write_page(classify(hostile()), tmp_path / "page.html"))
    assert "<svg" in shown  # the page is drawn
    assert "<title>ran" not in shown
    assert "<img" not in shown.rsplit("</script>", 1)[1]


def test_cells_of_a_csv_file_are_no_formulas(tmp_path: Path) -> None:
    data = hostile()
    export(data.assign(more=data["lmc"].assign_attrs(units="\t=1")), tmp_path / "all.csv", "csv")
    with (tmp_path / "all.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["variable"] for row in rows} == {"lmc", "cka", "test_error", "'@odd](x)<i>", "note", "more"}
    assert {row["units"] for row in rows if row["variable"] == "'@odd](x)<i>"} == {"'=1+1"}
    assert {row["value"] for row in rows if row["variable"] == "note"} == {"'=cmd|' /C calc'!A0"}
    numbers = [float(row["value"]) for row in rows if row["variable"] == "lmc"]
    assert numbers == pytest.approx(data["lmc"].values.ravel().tolist())
    assert min(numbers) < 0  # a minus sign before a number is none of a formula
