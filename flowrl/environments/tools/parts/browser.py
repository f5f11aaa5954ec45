"""A headless browser that pages are drawn in, by the package playwright: no network, and one thread that owns it."""

import os
import queue
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from PIL import Image

from flowrl.contracts import ModelsFault, Unavailable
from flowrl.environments.tools.parts.packages import require
from flowrl.environments.tools.parts.pages import DIRECTIONS, STEP, Hit

NAMES = ("chromium", "chromium-browser", "google-chrome")
# the element at a point: its id where it or one around it has one, else what can be read on it
NAMED = """e => { if (!e) return "";
  const own = e.closest("[id]"); if (own && own !== document.documentElement && own !== document.body) return own.id;
  return (e.getAttribute("aria-label") || e.innerText || e.getAttribute("name") || e.tagName).trim().slice(0, 80); }"""
AT = f"([x, y]) => {{ const e = document.elementFromPoint(x, y); return e === document.body ? '' : ({NAMED})(e); }}"
FOCUSED = f"""() => {{ const e = document.activeElement;
  const takes = e && (e.isContentEditable || e.tagName === "TEXTAREA"
    || (e.tagName === "INPUT" && !["checkbox", "radio", "button", "submit", "file", "image"].includes(e.type)));
  return takes ? ({NAMED})(e) : null; }}"""
WHERE = "() => [window.scrollX, window.scrollY]"


class Browser:
    """Chromium. Everything happens in a thread of its own, since the package is bound to the one that started it.

    path: of the program (None: the system's, or the one that playwright installed). Raises Unavailable, with what to
    do, where the package or the program is missing.
    """

    def __init__(self, path: str | None = None, seconds: float = 20.0):
        self.package: Any = require("the tool screen with pages of HTML", "playwright.sync_api", "browser")
        self.path, self.seconds = path or next(filter(None, map(shutil.which, NAMES)), None), seconds
        self._tasks: queue.Queue[tuple[Future[Any], Callable[[Any], Any]]] = queue.Queue()
        started: Future[Any] = Future()
        threading.Thread(target=self._work, args=(started,), name="browser", daemon=True).start()
        try:
            started.result(60)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise Unavailable(
                f"no browser starts ({reason}); apt-get install chromium, or playwright install chromium"
            ) from error

    def __call__(self, task: Callable[[Any], Any]) -> Any:
        """What a task gives, which is called with the browser in its thread."""
        done: Future[Any] = Future()
        self._tasks.put((done, task))
        return done.result(self.seconds * 3)

    def open(self, address: str, size: tuple[int, int]) -> "BrowserPage":
        """A page with cookies and storage of its own, which ends when nobody refers to it any more."""

        def task(browser: Any) -> Any:
            of = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True)
            of.set_default_timeout(self.seconds * 1000)
            of.route("**/*", lambda route: _local(route, address))
            page = of.new_page()
            page.on("dialog", lambda dialog: dialog.dismiss())
            page.goto(address)
            return page

        page = self(task)
        made = BrowserPage(self, page, size)
        weakref.finalize(made, self._tasks.put, (Future(), lambda _: page.context.close()))
        return made

    def _work(self, started: "Future[Any]") -> None:
        try:
            with self.package.sync_playwright() as playwright:
                flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own walls do not stand for root
                browser = playwright.chromium.launch(executable_path=self.path, headless=True, args=flags)
                started.set_result(None)
                while True:
                    done, task = self._tasks.get()
                    try:
                        done.set_result(task(browser))
                    except Exception as error:  # handed to whoever asked
                        done.set_exception(error)
        except Exception as error:  # of whatever kind playwright raises
            if not started.done():
                started.set_exception(error)


def _local(route: Any, address: str) -> None:
    """Lets a page load what lies beside it, and nothing else."""
    beside = address.rpartition("/")[0] + "/" if address.startswith("file:") else address
    wanted = route.request.url
    if wanted.startswith(("data:", "blob:")) or (address.startswith("file:") and wanted.startswith(beside)):
        route.continue_()
    else:
        route.abort()


class BrowserPage:
    """A page in a browser."""

    def __init__(self, browser: Browser, page: Any, size: tuple[int, int]):
        self.browser, self.page, self.size = browser, page, size

    def click(self, x: float, y: float) -> Hit:
        """What lies at the point, and a click there."""

        def task(_: Any) -> str:
            name: str = self.page.evaluate(AT, [x, y])
            self.page.mouse.click(x, y)
            return name

        name = self.browser(task)
        return Hit(name, f"Clicked {name!r}." if name else "There is nothing to click there.")

    def type(self, text: str) -> Hit:
        """Key by key, into what has the focus. Raises ModelsFault where that takes no text."""

        def task(_: Any) -> str | None:
            name: str | None = self.page.evaluate(FOCUSED)
            if name is not None:
                self.page.keyboard.type(text)
            return name

        name = self.browser(task)
        if name is None:
            raise ModelsFault("nothing that takes text was clicked last; click a text field first")
        return Hit(name, f"Typed {text!r} into {name!r}.")

    def scroll(self, direction: str) -> Hit:
        """As a wheel does."""
        across, down = DIRECTIONS[direction]
        by = [across * STEP * self.size[0], down * STEP * self.size[1]]

        def task(_: Any) -> bool:
            before = self.page.evaluate(WHERE)
            self.page.evaluate("([x, y]) => window.scrollBy({left: x, top: y, behavior: 'instant'})", by)
            return bool(before == self.page.evaluate(WHERE))

        return Hit("", f"There is nothing further {direction}." if self.browser(task) else f"Scrolled {direction}.")

    def picture(self) -> Image.Image:
        """A screenshot of the window."""
        import io

        taken = self.browser(lambda _: self.page.screenshot(animations="disabled", caret="hide"))
        with Image.open(io.BytesIO(taken)) as opened:
            return opened.convert("RGB")
