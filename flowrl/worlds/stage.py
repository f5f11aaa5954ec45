"""One stage of a world's pretraining, resumable.

A checkpoint holds weights, their moving average, the optimizer and the step; the caller draws the batch of step i from
generators seeded with (seed, i). The learning rate rises over the warm-up; at the end of each cycle it falls linearly
to zero, and the next begins at the full rate again (warm restarts, arXiv:1608.03983).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

WARMUP = 200  # steps
Cycle = tuple[int, float]
CHECKPOINT_SECONDS = 60


class Stage:
    """Trains `module` by AdamW with a moving average of the weights, resuming from `path`.

    cycles: of the learning rate, each a number of steps and the share of them, at the end, over which the rate falls.
    """

    def __init__(self, name: str, module: nn.Module, path: Path, *, cycles: Sequence[Cycle], lr: float, average: float):
        self.name, self.module, self.path = name, module, path
        self.cycles, self.steps, self.lr, self.average = cycles, sum(n for n, _ in cycles), lr, average
        self.params = list(module.parameters())
        self.mean = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.params, lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.step = 0
        if path.exists():
            self._load()

    def run(self, loss: Callable[[int], Tensor], report: Callable[[int], str] | None = None, every: int = 2000) -> None:
        """Trains to the end; `loss(step)` is a scalar. `report(step)`, under the averaged weights, is printed."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task(self.name, total=self.steps, completed=self.step, loss="-")
            saved = time.monotonic()
            while self.step < self.steps:
                value = self._update(loss(self.step))
                bar.update(task, completed=self.step, loss=f"{value:.4f}")
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
                if report is not None and self.step % every == 0:
                    self.swap()
                    bar.console.print(f"{self.name} step {self.step}: {report(self.step)}")
                    self.swap()
        self._save()

    def swap(self) -> None:
        """Exchanges the weights with their moving average."""
        for p, m in zip(self.params, self.mean, strict=True):
            held = p.data.clone()
            p.data.copy_(m)
            m.copy_(held)

    def _update(self, loss: Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate(self.step, self.cycles)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        weight = 1 - min(self.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.mean, [p.data for p in self.params], weight)
        return loss.item()

    def _save(self) -> None:
        state = {"step": self.step, "mean": self.mean, "module": self.module.state_dict()}
        aside = self.path.with_suffix(".tmp")
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, aside)
        aside.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean, self.step = state["mean"], state["step"]


def rate(step: int, cycles: Sequence[Cycle]) -> float:
    """The factor of the learning rate at a step."""
    end = 0
    for length, share in cycles:
        end += length
        if step < end:
            return min(1.0, (step + 1) / WARMUP, (end - step) / (share * length))
    return 0.0
