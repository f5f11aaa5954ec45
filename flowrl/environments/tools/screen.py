"""Actions on a screen: click, type, scroll and look, on annotated screenshots or on pages that a browser draws.

The actions are those of UI-R1 (arXiv:2503.21620), GUI-R1 (arXiv:2504.10458) and InfiGUI-R1 (arXiv:2504.14239).
"""

from pathlib import Path
from typing import Any

from flowrl.contracts import Context, ModelsFault, Shown
from flowrl.environments.tools.parts.browser import Browser
from flowrl.environments.tools.parts.pages import DIRECTIONS, Hit, Page, page_source, reached, static_page

STATE = "screen"
UNITS = {"pixels": None, "relative": 1.0, "thousandths": 1000.0}
LONGEST = 2000  # characters that are typed at once


class screen:
    """A page that the model acts on; each action is checked against the elements of the page."""

    def __init__(
        self,
        *,
        page: str = "page",
        goal: str = "goal",
        kind: str = "static",
        width: int | None = None,
        height: int | None = None,
        unit: str = "pixels",
        folder: str | None = None,
        program: str | None = None,
        seconds: float = 20.0,
    ):
        """Raises Unavailable for kind `browser` where there is none.

        page: the column of a prompt that has the page: of kind static what is known of its screenshot, {elements:
        [{box, name, kind, opens}]}, or a list of such screens; of kind browser a file of HTML in `folder`, or its text.
        goal: the column that has the actions that are asked for, in order, each {action, element or box, text}; where a
        prompt has none, nothing is counted. width, height: of the window in pixels (null: the screenshot's, 1280 x 720
        in a browser). unit: of coordinates, pixels of the window, relative (0 to 1) or thousandths. program: of the
        browser (null: chromium). seconds: that it may take for an action.
        """
        if kind not in ("static", "browser") or unit not in UNITS:
            raise ValueError(f"kind={kind!r}, unit={unit!r}; accepted: kind static or browser, unit {', '.join(UNITS)}")
        if (width is None) != (height is None) or (width is not None and height is not None and min(width, height) < 1):
            raise ValueError(f"width={width}, height={height}; accepted: both from 1, or neither")
        self.page, self.goal, self.unit, self.folder = page, goal, unit, Path(folder) if folder else None
        self.size = None if width is None or height is None else (width, height)
        self.browser = Browser(program, seconds) if kind == "browser" else None

    def __call__(
        self,
        action: str,
        context: Context,
        coordinate: list[float] | None = None,
        text: str = "",
        direction: str = "down",
    ) -> Shown:
        """Act on the screen. You see the screen after it.

        Args:
            action: What to do; look changes nothing. (choices: ["click", "type", "scroll", "look"])
            coordinate: Of a click, where: [x, y].
            text: What to type, into the text field that was clicked last.
            direction: Of a scroll, where to. (choices: ["up", "down", "left", "right"])
        """
        page = self._page(context)
        at = None
        if action == "click":
            at = self._point(coordinate, page.size)
            hit = page.click(*at)
        elif action == "type":
            if not text or len(text) > LONGEST:
                raise ModelsFault(f"text has {len(text)} characters; accepted: 1 to {LONGEST}")
            hit = page.type(text)
        elif action == "scroll":
            if direction not in DIRECTIONS:
                raise ModelsFault(f"direction={direction!r}; accepted: {', '.join(DIRECTIONS)}")
            hit = page.scroll(direction)
        elif action == "look":
            hit = Hit("", "")
        else:
            raise ModelsFault(f"action={action!r}; accepted: click, type, scroll, look")
        self._count(context, action, hit, at, text)
        return Shown(hit.said, (page.picture(),))

    def _page(self, context: Context) -> Page:
        """The page of the conversation, as its prompt has it at first."""
        if STATE not in context.state:
            given: Any = context.prompt.meta.get(self.page)
            if given is None:
                raise ValueError(f"prompt {context.prompt.id!r} has no column {self.page!r} with its page")
            if self.browser is None:
                context.state[STATE] = static_page(context, given, self.size)
            else:
                address = page_source(str(given), self.folder)
                context.state[STATE] = self.browser.open(address, self.size or (1280, 720))
        page: Page = context.state[STATE]
        return page

    def _point(self, coordinate: list[float] | None, size: tuple[int, int]) -> tuple[float, float]:
        """A point in pixels of the window. Raises ModelsFault for one that lies outside."""
        whole = UNITS[self.unit]
        over = size if whole is None else (whole, whole)
        if coordinate is None or len(coordinate) != 2:
            raise ModelsFault("a click needs a coordinate [x, y]")
        x, y = coordinate
        if not (0 <= x <= over[0] and 0 <= y <= over[1]):
            raise ModelsFault(
                f"coordinate={coordinate} lies outside the screen; accepted: 0 to {over[0]:g}, {over[1]:g}"
            )
        return (x * size[0] / over[0], y * size[1] / over[1])

    def _count(self, context: Context, action: str, hit: Hit, at: tuple[float, float] | None, text: str) -> None:
        """Counts actions, those that met nothing, and how far along the goals the conversation is."""
        numbers = context.outcome
        numbers["actions"] = numbers.get("actions", 0.0) + 1
        numbers["misses"] = numbers.get("misses", 0.0) + float(action == "click" and not hit.element)
        goals: Any = context.prompt.meta.get(self.goal)
        if goals is None:
            return
        goals = goals if isinstance(goals, list) else [goals]
        done = round(numbers.get("reached", 0.0) * len(goals))
        done += int(done < len(goals) and reached(goals[done], action, hit, at, text))
        numbers["reached"] = done / len(goals)
