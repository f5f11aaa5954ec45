"""A reward server, from its configuration to its end."""

import asyncio
import signal
from collections.abc import Callable

import uvicorn

from flowrl.serve import app
from flowrl.serve.config import ServerConfig, open_socket, read_token
from flowrl.serve.connections import ConnectionLimiter, limited_protocol
from flowrl.serve.pool import GRACE, WorkerPool

MORE_CONNECTIONS = 512  # beyond the requests that the server allows


def run(config: ServerConfig, say: Callable[[str], None], complain: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the open requests. `say` gets the address, `complain` problems.

    Raises UserError if the token is missing, the address is in use, or a reward cannot be loaded.
    """
    token = read_token(config.serve)
    with open_socket(config.serve) as listening:
        asyncio.run(_run(config, token, listening, say, complain))


async def _run(config: ServerConfig, token: str | None, listening, say: Callable, complain: Callable) -> None:
    serve, pool = config.serve, WorkerPool(config, complain)
    host, port = listening.getsockname()[:2]
    await pool.start()
    try:
        # uvicorn raises the signal again once it has ended; nothing is left to do then
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        settings = uvicorn.Config(
            app.build_app(app.Service(config, pool, token)),
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http=limited_protocol(
                ConnectionLimiter(serve.max_connections, serve.workers + serve.queue + MORE_CONNECTIONS)
            ),
            timeout_graceful_shutdown=int(serve.timeout + GRACE) + 1,
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        workers = "1 worker" if serve.workers == 1 else f"{serve.workers} workers"
        say(f"serving {', '.join(config.rewards)} at {address} by {workers}; see {address}/health")
        await uvicorn.Server(settings).serve(sockets=[listening])
    finally:
        await pool.close()
