"""The worker processes of a server, and the requests that wait for one, all bounded."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flowrl.names import UserError
from flowrl.serve import frames
from flowrl.serve.config import ServerConfig
from flowrl.untyped import JSON

TRIES = 2  # workers that may die while scoring one request
LOADING = 60.0  # extra seconds for a request whose worker died: the next one has to load its rewards first
GRACE = 5.0  # seconds in which a worker has to end
LONGEST_REST = 30.0  # seconds between two attempts to start a worker
# without the current directory at the head of the path, where a user's file could shadow a package
START = "import sys; sys.path[:] = filter(None, sys.path); from flowrl.serve.worker import main; main()"


class QueueFullError(RuntimeError):
    """No worker was free in time."""


class ScoringTimeoutError(RuntimeError):
    """Scoring exceeded the timeout."""


class WorkersLostError(RuntimeError):
    """Several workers died while scoring this request."""


class WorkerDiedError(RuntimeError):
    """A worker process has ended."""


@dataclass(eq=False)
class ScoringJob:
    """A request that waits for its reply (status, answer)."""

    kind: str
    body: bytes
    reply: asyncio.Future[dict[str, JSON]]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    tries: int = 0


class Worker:
    """One worker process."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process
        assert process.stdin is not None and process.stdout is not None
        self.input, self.output = process.stdin, process.stdout
        self.rewards: dict[str, dict[str, JSON]] = {}

    @classmethod
    async def start(cls, setup: bytes) -> "Worker":
        """A process with its rewards loaded. Raises UserError if they cannot be, WorkerDiedError if it ends before."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", START, stdin=pipe, stdout=pipe, env=environment
        )
        worker = cls(process)
        try:
            reply = json.loads(await worker.talk(setup))
        except BaseException:
            await worker.end(0)
            raise
        if "error" in reply:
            await worker.end(0)
            raise UserError(reply["error"])
        worker.rewards = reply["rewards"]
        return worker

    async def talk(self, *data: bytes) -> bytes:
        """The worker's answer. Raises WorkerDiedError if it ends first."""
        try:
            await frames.send(self.input, *data)
            return await frames.receive(self.output)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise WorkerDiedError from error

    async def end(self, seconds: float) -> None:
        """Asks the process to end; kills it if it has not ended after so many seconds."""
        self.input.close()
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class WorkerPool:
    """Passes requests to workers, one at a time each; a worker that dies is replaced, and its request retried once."""

    def __init__(self, config: ServerConfig, say: Callable[[str], None]):
        self.config, self._say = config.serve, say
        setup = {"rewards": {name: spec.model_dump() for name, spec in config.rewards.items()}}
        self._setup = json.dumps(
            setup | config.serve.model_dump(include={"max_items", "max_pixels", "device"})
        ).encode()
        self._jobs: asyncio.Queue[ScoringJob] = asyncio.Queue()  # bounded by `admitted`
        self.inside = self.restarts = 0
        self.ready: set[Worker] = set()
        self.rewards: dict[str, dict[str, JSON]] = {}
        self._keepers: list[asyncio.Task] = []

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return self._jobs.qsize()

    async def start(self) -> None:
        """Starts all workers. Raises UserError if their rewards cannot be loaded."""
        workers = await asyncio.gather(
            *(self._start_first() for _ in range(self.config.workers)), return_exceptions=True
        )
        errors = [error for error in workers if isinstance(error, BaseException)]
        started = [worker for worker in workers if isinstance(worker, Worker)]
        if errors:
            await asyncio.gather(*(worker.end(GRACE) for worker in started))
            raise errors[0]
        self.rewards = started[0].rewards
        self._keepers = [asyncio.create_task(self._keep_alive(worker)) for worker in started]

    async def _start_first(self) -> Worker:
        try:
            return await Worker.start(self._setup)
        except WorkerDiedError as error:
            raise UserError("serve: a worker ended while it loaded the rewards; its own messages are above") from error

    async def close(self) -> None:
        """Ends all workers."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    @property
    def full(self) -> bool:
        """Whether the server holds as many requests as it allows."""
        return self.inside >= self.config.workers + self.config.queue

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Reserves a place in the server for a request; call it only if the server is not full."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def score(self, kind: str, body: bytes) -> dict[str, JSON]:
        """A worker's {"status", "answer"}. Raises QueueFullError, ScoringTimeoutError or WorkersLostError."""
        job = ScoringJob(kind, body, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        try:
            await asyncio.wait_for(job.begun.wait(), self.config.timeout)
        except (TimeoutError, asyncio.TimeoutError):
            job.reply.cancel()
            raise QueueFullError(f"no worker was free for {self.config.timeout:g} s") from None
        return await job.reply

    async def _keep_alive(self, worker: Worker) -> None:
        """Keeps one worker running, and replaces it when it dies."""
        while True:
            self.ready.add(worker)
            try:
                await self._work(worker)
            except WorkerDiedError:
                self._say(f"worker {worker.process.pid} died or timed out; starting another")
                await worker.end(0)
            except asyncio.CancelledError:
                await worker.end(GRACE)
                raise
            finally:
                self.ready.discard(worker)
            self.restarts += 1
            worker = await self._start_replacement()

    async def _work(self, worker: Worker) -> None:
        """Runs job after job. Raises WorkerDiedError once the worker has died or timed out."""
        ended = asyncio.create_task(worker.process.wait())
        try:
            while True:
                coming = asyncio.create_task(self._jobs.get())
                try:
                    await asyncio.wait({coming, ended}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                job = coming.result() if coming.done() and not coming.cancelled() else None
                if ended.done():
                    if job is not None:
                        self._jobs.put_nowait(job)
                    raise WorkerDiedError
                if job is not None and not job.reply.done():
                    await self._run_job(worker, job)
        finally:
            ended.cancel()

    async def _run_job(self, worker: Worker, job: ScoringJob) -> None:
        """Runs one job to its reply. Raises WorkerDiedError if the worker has to be replaced."""
        job.begun.set()
        job.tries += 1
        try:
            reply = json.loads(await asyncio.wait_for(worker.talk(job.kind.encode(), job.body), self.config.timeout))
        except (TimeoutError, asyncio.TimeoutError):
            _fail(job, ScoringTimeoutError(f"scoring took more than {self.config.timeout:g} s"))
            raise WorkerDiedError from None
        except WorkerDiedError:
            if job.tries < TRIES:
                self._jobs.put_nowait(job)
                seconds = self.config.timeout + LOADING
                late = QueueFullError(f"no worker was free for {seconds:g} s")
                asyncio.get_running_loop().call_later(seconds, _fail, job, late)
            else:
                _fail(job, WorkersLostError(f"{TRIES} workers died while scoring this request"))
            raise
        except asyncio.CancelledError:
            _fail(job, QueueFullError("the server is stopping"))
            raise
        if not job.reply.done():
            job.reply.set_result(reply)

    async def _start_replacement(self) -> Worker:
        """A new worker, retrying for as long as it takes."""
        rest = 0.5
        while True:
            begun = time.monotonic()
            try:
                return await Worker.start(self._setup)
            except (WorkerDiedError, UserError, OSError) as error:
                self._say(f"no worker could be started ({error}); trying again in {rest:g} s")
            await asyncio.sleep(max(0.0, rest - (time.monotonic() - begun)))
            rest = min(2 * rest, LONGEST_REST)


def _fail(job: ScoringJob, error: Exception) -> None:
    if not job.reply.done():
        job.reply.set_exception(error)
