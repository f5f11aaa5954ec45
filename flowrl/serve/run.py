"""One server of rewards from its configuration to its end."""

import asyncio
import signal
from collections.abc import Callable

import uvicorn

from flowrl.serve import app
from flowrl.serve.config import Config, listen, token_of
from flowrl.serve.door import Door, guarded
from flowrl.serve.pool import GRACE, Pool

MORE_CONNECTIONS = 512  # than requests that may be in the server


def run(config: Config, say: Callable[[str], None], complain: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, then ends what is under way. `say` is told the address.

    Raises UserError where the token is missing, the address taken, or a reward cannot be loaded.
    """
    token = token_of(config.serve)
    with listen(config.serve) as taken:
        asyncio.run(_run(config, token, taken, say, complain))


async def _run(config: Config, token: str | None, taken, say: Callable, complain: Callable) -> None:
    serve, pool = config.serve, Pool(config, complain)
    host, port = taken.getsockname()[:2]
    await pool.start()
    try:
        # uvicorn raises the signal again once it has ended: what was asked for then is done
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        settings = uvicorn.Config(
            app.build(app.Service(config, pool, token)),
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            http=guarded(Door(serve.max_connections, serve.workers + serve.queue + MORE_CONNECTIONS)),
            timeout_graceful_shutdown=int(serve.timeout + GRACE) + 1,
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        workers = "1 worker" if serve.workers == 1 else f"{serve.workers} workers"
        say(f"serving {', '.join(config.rewards)} at {address} by {workers}; see {address}/health")
        await uvicorn.Server(settings).serve(sockets=[taken])
    finally:
        await pool.close()
