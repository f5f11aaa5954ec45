"""Python as a tool: a model's code runs in a sandbox, never in this process."""

import hashlib
import io
import warnings
from collections.abc import Mapping

from PIL import Image

from flowrl.contracts import Context, Shown, Unavailable
from flowrl.environments.tools.parts.pictures import resized
from flowrl.environments.tools.parts.sandbox.box import Machine, Sandbox
from flowrl.environments.tools.parts.sandbox.limits import Limits, NoSandboxError, Ran
from flowrl.environments.tools.parts.sandbox.machines import Bubblewrap, Docker
from flowrl.environments.tools.parts.sandbox.remote import E2B, SandboxFusion
from flowrl.media.pictures import as_image

STATE = "python"
LARGEST = 2**24  # pixels of a picture that code may leave
# keys of the recipe that belong to one sandbox, and what it calls them
OWN = {
    "bubblewrap": {"interpreter": "python"},
    "docker": {"image": "image", "command": "command"},
    "sandbox_fusion": {"url": "url"},
    "e2b": {"key_env": "key_env", "template": "template", "api": "api", "host": "host"},
}
MACHINES = {"bubblewrap": Bubblewrap, "docker": Docker, "sandbox_fusion": SandboxFusion, "e2b": E2B}
# what `plt.show()` of matplotlib does in the sandbox: each figure becomes a picture of the answer
BACKEND = """
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas
from matplotlib.backend_bases import FigureManagerBase as FigureManager
made = [0]
def show(*given, **named):
    from matplotlib import pyplot
    for number in pyplot.get_fignums():
        made[0] += 1
        pyplot.figure(number).savefig(f"figure_{made[0]}.png")
    pyplot.close("all")
"""
MODULE = "show_as_pictures"
SAYS = {
    "time": "The code was stopped after {seconds:g} seconds.",
    "killed": "The code was stopped: it ended its own sandbox, or took more memory than it may.",
}


class python:
    """Python in a sandbox without network; the model sees the printed output and saved pictures."""

    def __init__(
        self,
        *,
        sandbox: str = "bubblewrap",
        variables: bool = True,
        seconds: float = 10.0,
        memory: int = 1024,
        processes: int = 32,
        output: int = 4000,
        files: int = 16,
        pictures: int = 4,
        pixels: int = 1003520,
        interpreter: str | None = None,
        image: str | None = None,
        command: str | None = None,
        url: str | None = None,
        key_env: str | None = None,
        template: str | None = None,
        api: str | None = None,
        host: str | None = None,
    ):
        """Chooses a sandbox, and tries it. Raises Unavailable, with what to do, where it is not there.

        sandbox: bubblewrap, docker, sandbox_fusion or e2b. variables: earlier code of the conversation runs again
        before each call, as the cells of a notebook; otherwise each call is a program of its own, and files stay.
        seconds, memory (MiB), processes, output (characters), files (MiB): limits of a call. pictures: of an answer, at
        most; pixels: of each, which are made smaller. interpreter: of bubblewrap (null: that of flowrl, with its
        packages). image, command: of docker. url: of SandboxFusion. key_env, template, api, host: of E2B.
        """
        if sandbox not in MACHINES:
            raise ValueError(f"sandbox={sandbox!r}; accepted: {', '.join(MACHINES)}")
        given = {"interpreter": interpreter, "image": image, "command": command, "url": url}
        given |= {"key_env": key_env, "template": template, "api": api, "host": host}
        wrong = [name for name, value in given.items() if value is not None and name not in OWN[sandbox]]
        if wrong:
            raise ValueError(f"{wrong[0]}={given[wrong[0]]!r} is no key of sandbox={sandbox}; remove {wrong[0]}")
        self.sandbox, self.own = sandbox, {OWN[sandbox][n]: v for n, v in given.items() if v is not None}
        if sandbox == "sandbox_fusion" and url is None:
            raise ValueError("sandbox=sandbox_fusion needs the server's url, such as url: http://localhost:8080")
        self.limits = Limits(seconds, memory, processes, output, files)
        self.variables, self.pictures, self.pixels = variables, pictures, pixels
        try:
            self.machine().check()
        except NoSandboxError as error:
            others = ", ".join(name for name in MACHINES if name != sandbox)
            raise Unavailable(f"{error}; or choose sandbox: {others}") from error

    def machine(self) -> Machine:
        """A sandbox for one conversation."""
        made: Machine = MACHINES[self.sandbox](**self.own)
        return made

    def __call__(self, code: str, context: Context) -> Shown:
        """Run Python code. You see what it prints, the value of its last line, and pictures that it saves or shows.

        The pictures of the conversation are files: picture_1.png, picture_2.png and so on. There is no network.

        Args:
            code: The code.
        """
        if STATE not in context.state:
            context.state[STATE] = Held(Sandbox(self.machine(), self.limits))
        held: Held = context.state[STATE]
        for number in range(held.given, len(context.pictures)):
            file = io.BytesIO()
            as_image(context.pictures[number]).save(file, "PNG")
            held.box.write(f"picture_{number + 1}.png", file.getvalue())
        held.given = len(context.pictures)
        held.box.files.setdefault(f"{MODULE}.py", BACKEND.encode())
        settings = {"MPLBACKEND": f"module://{MODULE}"}
        ran = held.box.exec(code, held.cells, settings, keep=not self.variables)
        if self.variables and ran.status in ("done", "failed"):
            held.cells.append(code)
        pictures = held.new(ran.files, self.pictures, self.pixels)
        return Shown(self._text(ran), tuple(pictures))

    def _text(self, ran: Ran) -> str:
        said = [ran.out.rstrip("\n"), ran.err.rstrip("\n")]
        if ran.cut:
            said.append(f"({ran.cut} more bytes of output are not shown.)")
        if ran.lost:
            said.append(f"(Not kept, since files have at most {self.limits.files:g} MiB: {', '.join(ran.lost)[:200]}.)")
        if ran.status in SAYS:
            said.append(SAYS[ran.status].format(seconds=self.limits.seconds))
        return "\n".join(line for line in said if line) or "(no output)"


class Held:
    """What a conversation keeps: its sandbox, the code that ran, and which pictures have been given and shown."""

    def __init__(self, box: Sandbox):
        self.box, self.given = box, 0
        self.cells: list[str] = []
        self.shown: set[str] = set()

    def new(self, files: Mapping[str, bytes], most: int, pixels: int) -> list[Image.Image]:
        """Pictures among these files that were not shown before, by name; what is no picture, or too large, is none."""
        found: list[Image.Image] = []
        for path in sorted(files):
            mark = hashlib.sha256(path.encode() + files[path]).hexdigest()
            if not path.lower().endswith((".png", ".jpg", ".jpeg")) or mark in self.shown or len(found) == most:
                continue
            self.shown.add(mark)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                    with Image.open(io.BytesIO(files[path]), formats=("PNG", "JPEG")) as opened:
                        if opened.width * opened.height <= LARGEST:
                            found.append(resized(opened.convert("RGB"), 1.0, pixels))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue  # a file with that name, not a picture
        return found
