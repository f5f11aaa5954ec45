"""The state of a reward server: as JSON, or as a page."""

import time
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from flowrl import __version__
from flowrl.untyped import JSON
from reward_models.parts.remote.protocol import VERSION

if TYPE_CHECKING:
    from flowrl.serve.config import ServerConfig
    from flowrl.serve.pool import WorkerPool

STYLE = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:40rem;padding:0 1rem}"
STYLE += "th{text-align:left;font-weight:600;padding-right:2rem;vertical-align:top}:root{color-scheme:light dark}"


def server_state(
    config: "ServerConfig", pool: "WorkerPool", counts: Mapping[str, int], begun: float
) -> dict[str, JSON]:
    """The state of a server. status: ok, degraded (fewer workers than wanted) or down (none)."""
    ready, wanted = len(pool.ready), config.serve.workers
    return {
        "status": "ok" if ready == wanted else "degraded" if ready else "down",
        "version": VERSION,
        "flowrl": __version__,
        "rewards": pool.rewards,
        "workers": {"ready": ready, "wanted": wanted, "restarts": pool.restarts},
        "processes": sorted(worker.process.pid for worker in pool.ready),
        "queue": {"inside": pool.inside, "waiting": pool.waiting, "limit": config.serve.queue},
        "requests": dict(counts),
        "uptime": round(time.time() - begun, 1),
    }


def state_page(state: Mapping[str, JSON]) -> str:
    """The state as HTML."""
    workers, queue, requests = state["workers"], state["queue"], state["requests"]
    rows = {
        "status": state["status"],
        "rewards": ", ".join(f"{name} ({reward['use']})" for name, reward in state["rewards"].items()),
        "workers": f"{workers['ready']} of {workers['wanted']} ready, {workers['restarts']} replaced",
        "queue": f"{queue['waiting']} of {queue['limit']} waiting, {queue['inside']} requests in the server",
        "requests": ", ".join(f"{number} {what}" for what, number in requests.items()),
        "up for": f"{state['uptime']:.0f} s",
        "flowrl": f"{state['flowrl']}, protocol {state['version']}",
    }
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    title = f"flowrl rewards: {escape(state['status'])}"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<h1>{title}</h1><table>{table}</table></html>"
