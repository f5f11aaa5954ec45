"""A server of a policy: a process of its own, until it is told to end, or a thread of this one."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

Application = Any  # of ASGI
GRACE = 10  # seconds that open requests have when a server ends


def serve(app: Application, listening: socket.socket) -> None:
    """Serves at a listening socket until SIGINT or SIGTERM."""
    _server(app).run(sockets=[listening])


@contextlib.contextmanager
def served(app: Application, host: str = "127.0.0.1") -> Iterator[str]:
    """Within, the application is served by a thread at a free port; gives its address."""
    with socket.create_server((host, 0), backlog=512) as listening:
        server = _server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"http://{host}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(GRACE)


def _server(app: Application) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=GRACE,
        )
    )
