"""Tools that ship and need nothing else: calculator, zoom, quadrant; and Python, with a stand-in for its sandbox."""

from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from flowrl.contracts import Context, ModelsFault, Prompt, Shown, Unavailable
from flowrl.environments.tools import python as python_module
from flowrl.environments.tools.calculator import calculator
from flowrl.environments.tools.parts.sandbox.limits import NoSandboxError, SandboxError
from flowrl.environments.tools.python import python
from flowrl.environments.tools.zoom import quadrant, zoom
from sandbox_support import Here


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("347+285", "632"),
        ("2^10", "1024"),
        ("(3 + 4) × 12 ÷ 7", "12"),
        ("1/3", "0.333333333333"),
        ("-7 // 2", "-4"),
        ("sqrt(2) * sqrt(2)", "2"),
        ("round(2.5) + max(1, 2, 3)", "5"),
        ("2**100", str(2**100)),
        ("0.1 + 0.2", "0.3"),
        ("sin(pi)", "1.22464679915e-16"),
    ],
)
def test_calculator(expression: str, value: str):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1/0", "division by zero"),
        ("9**9**9**9", "too large"),
        ("2**(2**20)", "too large"),
        ("(-1)**0.5", "negative"),
        ("__import__('os').system('true')", "no arithmetic|no function"),
        ("open('a')", "no function 'open'"),
        ("(1).real", "no arithmetic"),
        ("[1 for _ in (1, 2)]", "no arithmetic"),
        ("True", "no arithmetic"),
        ("1,234", "no arithmetic"),
        ("3 +", "cannot be worked out"),
        ("1e308 * 10", "not finite"),
        ("-" * 200 + "1", "nested"),
        ("1+" * 300 + "1", "at most 500"),
        ("sqrt(1, 2)", "no value"),
        ("log(0)", "cannot be worked out"),
    ],
)
def test_calculator_tells_the_model_what_is_wrong(expression: str, said: str):
    with pytest.raises(ModelsFault, match=said):
        calculator(expression)


def _context(*pictures: Any) -> Context:
    return Context(Prompt("a", "What is it?", media=pictures), 0, list(pictures))


def _take(context: Context, shown: Shown) -> Image.Image:
    """What the run does with an answer: the model sees its pictures."""
    context.pictures += shown.pictures
    return shown.pictures[0]


def _target() -> Image.Image:
    """200 x 100, with one red pixel at (150, 70) in a blue square of 10."""
    image = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(image).rectangle((146, 66, 155, 75), fill="blue")
    image.putpixel((150, 70), (255, 0, 0))
    return image


def test_zoom_cuts_what_the_box_says():
    other = torch.zeros(3, 40, 60)
    context = _context(other, _target())
    part = _take(context, zoom(least=1)([146, 66, 156, 76], context, picture=2))
    assert part.size == (10, 10) and part.getpixel((4, 4)) == (255, 0, 0) and part.getpixel((9, 9)) == (0, 0, 255)
    same = zoom(unit="relative", least=1)([0.73, 0.66, 0.78, 0.76], context, picture=2).pictures[0]
    assert same.tobytes() == part.tobytes()
    same = zoom(unit="thousandths", least=1, factor=3)([730, 660, 780, 760], context, picture=2).pictures[0]
    assert same.size == (30, 30)
    assert zoom(least=1)([0, 0, 60, 40], context).pictures[0].getpixel((5, 5)) == (0, 0, 0)


def test_zoom_of_a_part_takes_the_pixels_of_the_file():
    context = _context(_target())
    _take(context, zoom(unit="relative", most=64, least=1)([0.5, 0.5, 1, 1], context))
    assert context.pictures[1].width * context.pictures[1].height <= 72  # made small: the red pixel is lost there
    part = _take(context, zoom(unit="relative", least=1)([0.46, 0.32, 0.56, 0.52], context, picture=2))
    assert part.size == (10, 10) and part.getpixel((4, 4)) == (255, 0, 0)
    again = zoom(unit="pixels", least=1)([4, 4, 6, 6], context, picture=3).pictures[0]
    assert again.size == (2, 2) and again.getpixel((0, 0)) == (255, 0, 0)


def test_a_small_box_is_widened_within_the_picture():
    context = _context(_target())
    assert zoom()([198, 98, 200, 100], context).pictures[0].size == (28, 28)
    assert zoom(least=150)([10, 10, 20, 20], context).pictures[0].size == (150, 100)


@pytest.mark.parametrize(
    ("box", "picture", "said"),
    [
        ([1, 2, 3], 1, "3 numbers"),
        ([10, 10, 5, 20], 1, "no rectangle"),
        ([-1, 0, 5, 5], 1, "no rectangle"),
        ([250, 0, 260, 50], 1, "right <= 200"),
        ([float("nan"), 0, 5, 5], 1, "no rectangle"),
        ([0, 0, 200, 1], 1, "narrow"),
        ([0, 0, 50, 50], 2, "no picture 2"),
        ([0, 0, 50, 50], 0, "no picture 0"),
    ],
)
def test_a_wrong_box_is_told(box: list[float], picture: int, said: str):
    with pytest.raises(ModelsFault, match=said):
        zoom()(box, _context(_target()), picture=picture)


def test_zoom_may_be_kept_to_the_prompt():
    context = _context(_target())
    tool = zoom(pictures="prompt")
    _take(context, tool([0, 0, 100, 100], context))
    with pytest.raises(ModelsFault, match="accepted: 1 to 1"):
        tool([0, 0, 50, 50], context, picture=2)
    for wrong in ({"unit": "inches"}, {"factor": 0}, {"pictures": "none"}, {"ratio": 0.5}):
        with pytest.raises(ValueError, match="accepted"):
            zoom(**wrong)


def test_quadrants_in_two_levels():
    context, tool = _context(_target()), quadrant(side=50)
    first = _take(context, tool("bottom-right", context))
    assert first.size == (50, 25)
    second = _take(context, tool("top-left", context))
    assert second.size == (50, 25)  # 100 <= x < 150, 50 <= y < 75
    with pytest.raises(ModelsFault, match="closer than 2 times"):
        tool("top-left", context)
    with pytest.raises(ModelsFault, match="accepted: top-left"):
        quadrant()("middle", _context(_target()))
    with pytest.raises(ModelsFault, match="no picture"):
        quadrant()("top-left", _context())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(python_module.MACHINES, "bubblewrap", Here)


def _pictures_of(shown: Shown) -> list[tuple[int, int]]:
    return [picture.size for picture in shown.pictures]


def test_python_goes_on_as_a_notebook_does(here: None):
    context, tool = _context(_target()), python()
    assert tool("import random\nx = 5\nprint('once')", context).text == "once"
    code = "from PIL import Image\nwith Image.open('picture_1.png') as p:\n    p.crop((146, 66, 156, 76)).save('b.png')"
    code += "\nx + 1"
    shown = tool(code, context)
    assert shown.text == "6" and _pictures_of(shown) == [(10, 10)]
    assert shown.pictures[0].getpixel((4, 4)) == (255, 0, 0)
    context.pictures += shown.pictures
    shown = tool("import os\nprint(sorted(n for n in os.listdir() if n.startswith('p')))\n1 / 0", context)
    assert shown.text.startswith("['picture_1.png', 'picture_2.png']\nTraceback") and not shown.pictures
    assert tool("x", context).text == "5" and tool("y = 1", context).text == "(no output)"
    assert python()("'x' in globals()", _context()).text == "False"  # another conversation


def test_python_without_variables_keeps_files(here: None):
    context, tool = _context(), python(variables=False, output=20)
    assert tool("x = 5; open('a.txt', 'w').write('kept')", context).text == "4"
    assert tool("open('a.txt').read()", context).text == "'kept'"
    assert tool("print('a')\nx", context).text.startswith("a\n") and "x' is not defined" in tool("x", context).text
    assert tool("print('y' * 50)", context).text == "y" * 20 + "\n(31 more bytes of output are not shown.)"


@pytest.mark.slow
def test_python_shows_figures(here: None):
    pytest.importorskip("matplotlib")
    shown = python(pixels=10000, seconds=60)("import matplotlib.pyplot as p\np.plot([1, 2])\np.show()", _context())
    ((width, height),) = _pictures_of(shown)
    assert 9000 < width * height <= 10100


def test_a_file_that_is_no_picture_is_none(here: None):
    code = "open('a.png', 'wb').write(b'no picture')\nopen('b.png', 'w').close()"
    assert not python()(code, _context()).pictures


def test_a_failing_sandbox_is_no_answer(here: None, monkeypatch: pytest.MonkeyPatch):
    tool = python()
    monkeypatch.setattr(Here, "run", lambda self, task, limits: b"\nno space left on device")
    with pytest.raises(SandboxError, match="no space left"):
        tool("1", _context())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sandbox": "none"}, "accepted: bubblewrap, docker, sandbox_fusion, e2b"),
        ({"url": "http://localhost"}, "no key of sandbox=bubblewrap"),
        ({"sandbox": "sandbox_fusion"}, "needs the server's url"),
        ({"seconds": 0.0}, "seconds=0.0"),
    ],
)
def test_keys_of_python(keys: dict, said: str):
    with pytest.raises(ValueError, match=said):
        python(**keys)


def test_a_missing_sandbox_ends_the_run_before_it_starts(monkeypatch: pytest.MonkeyPatch):
    def missing(self: Here) -> None:
        raise NoSandboxError("it is not installed: apt-get install it")

    monkeypatch.setattr(Here, "check", missing)
    monkeypatch.setitem(python_module.MACHINES, "bubblewrap", Here)
    with pytest.raises(Unavailable, match="apt-get install it; or choose sandbox: docker, sandbox_fusion, e2b"):
        python()
