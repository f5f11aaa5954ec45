"""The tool screen: annotated screenshots, and pages of HTML in a real browser where there is one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from flowrl.contracts import Context, ModelsFault, Prompt, Unavailable
from flowrl.environments.tools.parts.browser import Browser
from flowrl.environments.tools.parts.pages import page_source
from flowrl.environments.tools.screen import screen


def _shot(colour: str, height: int = 100) -> Image.Image:
    image = Image.new("RGB", (200, height), "white")
    ImageDraw.Draw(image).rectangle((20, 10, 80, 40), fill=colour)
    return image


SHOP = [
    {
        "picture": _shot("red", 300),
        "elements": [
            {"box": [0, 0, 200, 60], "name": "header"},
            {"box": [20, 10, 80, 40], "name": "cart", "opens": 1},
            {"box": [100, 10, 180, 40], "name": "search", "kind": "text"},
            {"box": [0, 250, 200, 300], "name": "imprint"},
        ],
    },
    {"picture": _shot("blue"), "elements": [{"bbox": [20, 10, 80, 40], "text": "buy"}]},
]


def _context(**meta: Any) -> Context:
    return Context(Prompt("a", "Buy it.", meta=meta), 0)


def test_clicks_are_checked_against_elements():
    context = _context(page=SHOP, goal=[{"action": "click", "element": "cart"}, {"box": [20, 10, 80, 40]}])
    tool = screen(width=200, height=100)
    shown = tool("click", context, [100, 50])
    assert shown.text == "Clicked 'header'." and shown.pictures[0].size == (200, 100)
    assert context.outcome == {"actions": 1, "misses": 0, "reached": 0}
    assert tool("click", context, [100, 80]).text == "There is nothing to click there."
    shown = tool("click", context, [80, 40])  # the smaller of two, on its border
    assert shown.text == "Clicked 'cart'." and shown.pictures[0].getpixel((30, 20)) == (0, 0, 255)
    assert context.outcome == {"actions": 3, "misses": 1, "reached": 0.5}
    assert tool("click", context, [30, 20]).text == "Clicked 'buy'."
    assert context.outcome["reached"] == 1 and tool("click", context, [30, 20]) and context.outcome["reached"] == 1


def test_typing_needs_a_field_and_scrolling_moves_the_window():
    context = _context(page=SHOP, goal={"action": "type", "text": "Otter ", "element": "search"})
    tool = screen(width=200, height=100, unit="thousandths")
    with pytest.raises(ModelsFault, match="click a text field first"):
        tool("type", context, text="otter")
    tool("click", context, [700, 200])
    assert tool("type", context, text="otter").text == "Typed 'otter' into 'search'."
    assert context.outcome["reached"] == 1 and context.state["screen"].written == {"search": "otter"}
    assert [tool("scroll", context).text for _ in range(4)] == ["Scrolled down."] * 3 + [
        "There is nothing further down."
    ]
    assert tool("click", context, [500, 900]).text == "Clicked 'imprint'."
    assert tool("scroll", context, direction="left").text == "There is nothing further left."
    assert tool("scroll", context, direction="up").text == "Scrolled up."
    before = tool("look", context)
    assert before.text == "" and before.pictures[0].tobytes() == tool("look", context).pictures[0].tobytes()


@pytest.mark.parametrize(
    ("action", "given", "said"),
    [
        ("click", {}, "needs a coordinate"),
        ("click", {"coordinate": [1.0]}, "needs a coordinate"),
        ("click", {"coordinate": [201.0, 5.0]}, "outside the screen"),
        ("click", {"coordinate": [float("nan"), 5.0]}, "outside the screen"),
        ("type", {}, "0 characters"),
        ("scroll", {"direction": "in"}, "accepted: up, down"),
        ("drag", {}, "accepted: click"),
    ],
)
def test_a_wrong_action_is_told(action: str, given: dict, said: str):
    with pytest.raises(ModelsFault, match=said):
        screen()(action, _context(page=SHOP[1]), **given)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (None, "no column 'page'"),
        ({"elements": "none"}, "no list of elements"),
        ({"elements": []}, "no picture"),
        ([SHOP[1] | {"elements": [{"box": [1, 2]}]}], "box of four numbers"),
        ([SHOP[1] | {"elements": [{"box": [1, 2, 3, 4], "opens": 5}]}], "opens screen 5"),
    ],
)
def test_a_page_that_is_none_is_ours(page: Any, said: str):
    with pytest.raises(ValueError, match=said):
        screen()("click", _context(page=page), [1, 1])


def test_keys_are_checked():
    for wrong in ({"kind": "real"}, {"unit": "inches"}, {"width": 5}, {"width": 0, "height": 5}):
        with pytest.raises(ValueError, match="accepted"):
            screen(**wrong)
    with pytest.raises(ValueError, match="no file"):
        page_source("https://example.com")


def test_a_missing_browser_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(Unavailable, match=r'pip install "flowrl-toolkit\[browser\]"'):
        screen(kind="browser")
    monkeypatch.undo()
    pytest.importorskip("playwright")
    with pytest.raises(Unavailable, match="apt-get install chromium"):
        screen(kind="browser", program="no-such-browser")


HTML = """<!doctype html><title>shop</title><style>body { margin: 0 } #far { margin-top: 2000px }</style>
<button id=cart style="position: absolute; left: 20px; top: 10px; width: 60px; height: 30px"
  onclick="document.body.style.background = 'rgb(0, 0, 255)'">cart</button>
<input id=query style="position: absolute; left: 100px; top: 10px; width: 80px">
<img src="https://example.com/beacon.png"><div id=far>far</div>"""


@pytest.fixture(scope="module")
def tool() -> Iterator[screen]:
    pytest.importorskip("playwright")
    try:
        Browser()
    except Unavailable as error:
        pytest.skip(str(error))
    yield screen(kind="browser", width=200, height=100)


@pytest.mark.slow
def test_a_page_in_a_browser(tool: screen, tmp_path: Path):
    (tmp_path / "shop.html").write_text(HTML)
    goal = [{"element": "cart"}, {"action": "type", "element": "query", "text": "otter"}]
    context, other = _context(page=HTML, goal=goal), _context(page=str(tmp_path / "shop.html"))
    shown = tool("click", context, [30, 20])
    assert shown.text == "Clicked 'cart'." and shown.pictures[0].getpixel((5, 90)) == (0, 0, 255)
    with pytest.raises(ModelsFault, match="click a text field"):
        tool("type", context, text="otter")
    tool("click", context, [120, 20])
    assert tool("type", context, text="otter").text == "Typed 'otter' into 'query'."
    assert context.outcome["reached"] == 1
    assert tool("scroll", other).text == "Scrolled down."
    assert tool("scroll", other, direction="left").text == "There is nothing further left."
    assert tool("click", other, [150, 90]).pictures[0].getpixel((5, 90)) == (255, 255, 255)  # a page of its own
    page = context.state["screen"].page
    assert tool.browser is not None
    assert tool.browser(lambda _: page.evaluate("() => document.querySelector('img').naturalWidth")) == 0  # no network
