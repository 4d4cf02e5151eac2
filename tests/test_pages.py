"Pages that open anywhere, tables on a terminal, numbers as people read them."

import io
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from mmlit.pages import facts_html, figure_html, interval_text, save_page, table_html, terminal, terminal_table
from mmlit.scores import Interval

ODD = ["<b>bold</b>", 'say "yes"', "[red]", "a & b", "$x_1$", "[/b]", "naïve · 数"]


class Tags(HTMLParser):
    "Counts what opens, and the texts."

    void = {"meta", "img"}

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_is_well_formed_whatever_the_names_hold(tmp_path):
    figure, ax = plt.subplots(figsize=(1, 1))
    body = table_html(["name", *ODD], [[name, *range(len(ODD))] for name in ODD], strong=ODD[1])
    body += figure_html(figure, ODD[1]) + facts_html({name: name for name in ODD})
    page = Tags(save_page(tmp_path / "a" / "b.html", ODD[0], body).read_text(encoding="utf8"))
    assert not page.open
    assert "b" not in [tag for tag, _ in page.seen]  # names make no markup
    assert all(page.texts.count(name) == 4 for name in ODD[1:])  # as a column, as a row, twice as a fact
    assert page.texts.count(ODD[0]) == 6  # and as title and heading
    assert [a for tag, a in page.seen if tag == "tr" and a] == [{"class": "reference"}]
    assert [a["alt"] for tag, a in page.seen if tag == "img"] == [ODD[1]]


def test_a_page_asks_for_nothing_from_outside(tmp_path):
    figure, ax = plt.subplots(figsize=(1, 1))
    page = save_page(tmp_path / "page.html", "t", figure_html(figure, "a picture")).read_text(encoding="utf8")
    links = [v for _, attrs in Tags(page).seen for k, v in attrs.items() if k in ("src", "href")]
    assert len(links) == 1 and links[0].startswith("data:image/svg+xml;base64,") and "<script" not in page


def test_no_row_is_bold_where_none_is_named():
    assert "reference" not in table_html(["", "score"], [["", 1], ["joint", 2]])


def test_a_figure_is_closed_after_it_was_written():
    before = plt.get_fignums()
    figure_html(plt.figure(), "nothing")
    assert plt.get_fignums() == before


@pytest.mark.parametrize("percent", [False, True])
@pytest.mark.parametrize("sign", [False, True])
def test_the_numbers_of_a_text_are_those_of_the_interval(percent, sign):
    rng = np.random.default_rng(0)
    for low, mean, high in np.sort(rng.uniform(-1, 1, (50, 3))):
        text = interval_text(Interval(mean, low, high), percent=percent, sign=sign)
        read = [float(v) for v in text.replace("[", "").replace("]", "").replace(",", "").split()]
        scale, digits = (100, 1) if percent else (1, 3)
        assert read == [round(scale * v, digits) for v in (mean, low, high)]
        assert text.startswith("+") == (sign and mean > 0)


def test_units_stand_behind_percentages_only():
    nan = float("nan")
    assert interval_text(Interval(0.5, nan, nan), percent=True, unit=True) == "50.0 %"
    assert interval_text(Interval(0.5, nan, nan), percent=True, sign=True, unit=True) == "+50.0 points"
    assert interval_text(Interval(0.5, nan, nan), unit=True) == "0.500"
    assert interval_text(None, percent=True, unit=True) == ""


def printed(*args, width=100, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    terminal_table(*args, console=console, **options)
    return console.file.getvalue()


def test_a_table_keeps_names_and_sets_one_row_in_bold():
    rows = [[name, f"{i}.5"] for i, name in enumerate(ODD)]
    bold = [line for line in printed("title", ["name", "score"], rows, strong=ODD[3]).splitlines() if "\x1b[1m" in line]
    assert any(ODD[3] in line for line in bold) and not any(ODD[0] in line for line in bold)
    text = printed("a [red] title", ["name", "score"], rows)
    assert all(name in text for name in ODD) and "a [red] title" in text


def test_without_a_terminal_a_table_has_the_width_that_was_asked_for(capsys):
    assert terminal(77).width == 77
    terminal_table("title", ["name", "score"], [["a" * 60, "1"]])
    assert "a" * 60 in capsys.readouterr().out  # 120 columns: nothing is cut
