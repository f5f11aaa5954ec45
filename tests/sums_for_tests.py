"""A taskset of verifiers with two sums, and a harness that asks for each in this process; for tests."""

from collections.abc import Iterable
from typing import Any

import openai
import verifiers.v1 as vf
from verifiers.v1.harness import Harness
from verifiers.v1.runtimes import ProgramResult

__all__ = ["InProcess", "Sums"]


class SumData(vf.TaskData):
    """A sum."""

    answer: str = ""


class Sum(vf.Task[SumData]):
    """Half for asking twice, and a tenth for each digit said."""

    @vf.reward(weight=0.1)
    async def digits(self, trace: Any) -> float:
        """How many digits the last turn has."""
        return float(sum(c.isdigit() for c in trace.messages[-1].content or ""))


class Sums(vf.Taskset[Sum]):
    """Two sums."""

    def load(self) -> Iterable[Sum]:
        """Both."""
        for prompt, answer in (("1+2", "3"), ("2+5", "7")):
            yield Sum(SumData(prompt=prompt, answer=answer), self.config.task)


class InProcess(Harness[vf.HarnessConfig]):
    """Asks, and asks again."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, tool_interception_url=None):
        """Two calls, the second with the first in it."""
        client = openai.AsyncOpenAI(base_url=endpoint, api_key=secret)
        chat = [{"role": "user", "content": data.prompt}]
        for _ in range(2):
            said = await client.chat.completions.create(model=ctx.model, messages=chat)
            chat.append({"role": "assistant", "content": said.choices[0].message.content})
            chat.append({"role": "user", "content": "Again."})
        return ProgramResult(exit_code=0, stdout="", stderr="")
