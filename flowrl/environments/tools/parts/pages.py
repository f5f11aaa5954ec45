"""Pages that a model clicks, types and scrolls on: screenshots whose elements are known, and pages in a browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from flowrl.contracts import Context, ModelsFault
from flowrl.media.pictures import as_image

WRITABLE = ("text", "input", "textbox", "textarea", "search", "password", "email")  # kinds of elements that take text
STEP = 0.8  # of the window's height or width, that one scroll goes
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


@dataclass(frozen=True)
class Hit:
    """What an action met: the name of an element, "" for none, and what the page says of it."""

    element: str
    said: str


class Page(Protocol):
    """A page as it is shown. size: width and height of its window in pixels; coordinates are those of the window."""

    size: tuple[int, int]

    def click(self, x: float, y: float) -> Hit:
        """What a click at a point meets."""
        ...

    def type(self, text: str) -> Hit:
        """Writes into the element that was clicked last. Raises ModelsFault where that takes no text."""
        ...

    def scroll(self, direction: str) -> Hit:
        """Moves what the window shows by most of its size."""
        ...

    def picture(self) -> Image.Image:
        """What the window shows."""
        ...


@dataclass(frozen=True)
class Element:
    """A part of a screenshot: its box in pixels of the file, its name and kind, and the screen that a click opens."""

    box: tuple[float, float, float, float]
    name: str
    kind: str = ""
    opens: int | None = None


@dataclass(frozen=True)
class Screen:
    """A screenshot with what is known of it; it may be higher or wider than the window."""

    picture: Any
    elements: tuple[Element, ...]


@dataclass
class StaticPage:
    """Screenshots whose elements were annotated, as data sets have them; no browser is needed.

    Texts that are typed are kept, and not drawn: the pictures are the files'.
    """

    screens: Sequence[Screen]
    size: tuple[int, int]
    number: int = 0
    offset: tuple[int, int] = (0, 0)
    focus: Element | None = None
    written: dict[str, str] = field(default_factory=dict)

    def click(self, x: float, y: float) -> Hit:
        """The smallest element that the point lies in; borders belong to it."""
        left, top = x + self.offset[0], y + self.offset[1]
        under = [e for e in self.screens[self.number].elements if _within(left, top, e.box)]
        hit = min(under, key=lambda e: (e.box[2] - e.box[0]) * (e.box[3] - e.box[1]), default=None)
        self.focus = hit
        if hit is None:
            return Hit("", "There is nothing to click there.")
        if hit.opens is not None:
            self.number, self.offset, self.focus = hit.opens, (0, 0), None
        return Hit(hit.name, f"Clicked {hit.name!r}.")

    def type(self, text: str) -> Hit:
        """Keeps the text of the element."""
        if self.focus is None or self.focus.kind not in WRITABLE:
            raise ModelsFault("nothing that takes text was clicked last; click a text field first")
        self.written[self.focus.name] = text
        return Hit(self.focus.name, f"Typed {text!r} into {self.focus.name!r}.")

    def scroll(self, direction: str) -> Hit:
        """Moves within the screenshot."""
        across, down = DIRECTIONS[direction]
        whole = as_image(self.screens[self.number].picture).size
        moved = [
            int(min(max(at + way * math.ceil(STEP * window), 0), max(all_ - window, 0)))
            for at, way, window, all_ in zip(self.offset, (across, down), self.size, whole, strict=True)
        ]
        there, self.offset = (moved[0], moved[1]) == self.offset, (moved[0], moved[1])
        return Hit("", f"There is nothing further {direction}." if there else f"Scrolled {direction}.")

    def picture(self) -> Image.Image:
        """The part of the screenshot within the window."""
        left, top = self.offset
        image = as_image(self.screens[self.number].picture)
        return image.crop((left, top, min(left + self.size[0], image.width), min(top + self.size[1], image.height)))


def static_page(context: Context, given: Any, size: tuple[int, int] | None) -> StaticPage:
    """The page of a prompt: `given` is a screen, or a list of them.

    A screen is {elements: [{box, name, kind, opens}], picture}; one without a picture has the prompt's of its number.
    size: of the window (None: the first screenshot's). Raises ValueError for anything else: that is the data set's
    fault, not the model's.
    """
    records = given if isinstance(given, list) else [given]
    screens = []
    for number, record in enumerate(records):
        if not isinstance(record, Mapping) or not isinstance(record.get("elements"), list):
            raise ValueError(f"screen {number} of prompt {context.prompt.id!r} has no list of elements: {record!r:.80}")
        media = context.prompt.media
        picture = record.get("picture", media[number] if number < len(media) else None)
        if picture is None:
            raise ValueError(f"screen {number} of prompt {context.prompt.id!r} has no picture, nor has the prompt")
        screens.append(Screen(picture, tuple(_element(one, len(records)) for one in record["elements"])))
    return StaticPage(screens, size or as_image(screens[0].picture).size)


def _element(record: Any, screens: int) -> Element:
    """Raises ValueError for what is no element."""
    box = record.get("box", record.get("bbox")) if isinstance(record, Mapping) else None
    if not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise ValueError(f"an element has a box of four numbers and a name, not {record!r:.80}")
    opens = record.get("opens")
    if opens is not None and not (isinstance(opens, int) and 0 <= opens < screens):
        raise ValueError(f"an element opens screen {opens!r}; accepted: null, or a number below {screens}")
    name = next((str(record[n]) for n in ("name", "text", "instruction") if record.get(n)), "element")
    left, top, right, bottom = (float(v) for v in box)
    return Element((left, top, right, bottom), name, str(record.get("kind", record.get("data_type", ""))), opens)


def _within(x: float, y: float, box: Sequence[float]) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def reached(goal: Mapping[str, Any], action: str, hit: Hit, at: Sequence[float] | None, text: str) -> bool:
    """Whether an action is the one that a goal asks for.

    goal: {action, element or box, text}: of a click the element's name or a box that the point lies in, of a text what
    is typed, without regard to case and spaces around it.
    """
    if str(goal.get("action", "click")).lower() != action:
        return False
    if goal.get("text") is not None and text.strip().lower() != str(goal["text"]).strip().lower():
        return False
    if goal.get("box") is not None and action == "click":
        return at is not None and _within(at[0], at[1], goal["box"])
    return goal.get("element") is None or str(goal["element"]) == hit.element


def page_source(given: str, folder: Path | None = None) -> str:
    """The address of a page: a file of HTML, or the text of one. Raises ValueError for any other address."""
    if given.lstrip().startswith("<"):
        return "data:text/html;charset=utf-8," + _quoted(given)
    path = (folder or Path()) / given
    if not path.is_file():
        raise ValueError(f"{given!r} is no file; accepted: a file of HTML, or its text")
    return path.resolve().as_uri()


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text)
