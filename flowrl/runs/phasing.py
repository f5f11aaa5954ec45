"""The phases of a run in its loop: what begins anew with each, and the prompts that each draws."""

from collections.abc import Callable, Iterator, Sequence

from flowrl.contracts import Prompt
from flowrl.core.learning.learner import Learner
from flowrl.reading.cursor import Cursor
from flowrl.reading.inputs import prompt_cursor
from flowrl.recipe.keys.phases import phase_at, starts
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON


class Draws:
    """The draws of prompts of a run's phases: phases of the same prompts and choice share one, and all that draw from
    the same prompts share a memory. state_dict is that of the draw itself where there is but one."""

    def __init__(self, recipe: Recipe, prompts: Sequence[list[Prompt]]):
        self._cursors: list[Cursor] = []
        made: list[tuple[object, Cursor]] = []
        for part, given in zip(recipe.parts(), prompts, strict=True):
            key = part.prompts
            cursor = next((known for other, known in made if other == key), None)
            if cursor is None:
                cursor = prompt_cursor(part, given)
                if made:
                    cursor.memory = made[0][1].memory
                made.append((key, cursor))
            self._cursors.append(cursor)
        self._distinct = [cursor for _, cursor in made]
        self._recipe, self._at = recipe, -1

    def of(self, recipe: Recipe, iteration: int) -> Cursor:
        """The draw of an iteration, counted from 0, which begins now."""
        self._at = iteration
        return self._cursors[phase_at(recipe.phases, iteration) if recipe.phases else 0]

    def coming(self, iterations: int, number: Callable[[int], int]) -> Iterator[list[Prompt]]:
        """The draws of so many iterations, beginning with those of the one that is under way, if one is.

        number: how many prompts are drawn for so many that are to be trained. Later draws are as they would be if
        nothing more became known of the prompts: where they are chosen by what is remembered, or drawn again for want
        of advantages, others may come.
        """
        recipe, now = self._recipe, self._cursors[self._phase(self._at)]
        under_way, copies = list(now.drawn), {id(now): now.copy()}
        yield from under_way
        if under_way:
            copies[id(now)].observe({})
        last = self._at + iterations + (not under_way)
        for iteration in range(self._at + 1, min(last, recipe.train.iterations)):
            phase = self._phase(iteration)
            cursor = self._cursors[phase]
            cursor = copies.setdefault(id(cursor), cursor.copy())
            drawn = number(recipe.parts()[phase].train.drawn)
            yield cursor.take(min(drawn, len(cursor.prompts)))
            cursor.observe({})

    def _phase(self, iteration: int) -> int:
        return phase_at(self._recipe.phases, iteration) if self._recipe.phases else 0

    def state_dict(self) -> dict[str, JSON]:
        """The states of the draws."""
        if len(self._distinct) == 1:
            return self._distinct[0].state_dict()
        return {str(i): cursor.state_dict() for i, cursor in enumerate(self._distinct)}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Restores them. A draw that the state lacks, of a phase that was added, stays at its start."""
        if len(self._distinct) == 1 and "0" not in state:
            self._distinct[0].load_state_dict(state)
            return
        for i, cursor in enumerate(self._distinct):
            if str(i) in state or (i == 0 and "position" in state):
                cursor.load_state_dict(state.get(str(i), state))


def begin_phase(recipe: Recipe, iteration: int, learner: Learner) -> int | None:
    """Resets what the phase that begins with this iteration resets; the number of its phase, from 1, if there are any.

    Done again, as after a resume, it changes nothing.
    """
    if not recipe.phases:
        return None
    number = phase_at(recipe.phases, iteration)
    if iteration and starts(recipe.phases)[number] == iteration:
        learner.reset(recipe.phases[number].reset)
    return number + 1


def phase_metrics(recipe: Recipe, phase: int | None, iteration: int, steps: int) -> dict[str, float]:
    """The number of a phase, from 1 (None: there are none), and the values of its curves in an iteration, counted from
    0, before which so many optimizer steps were taken."""
    metrics = {} if phase is None else {"phase": float(phase)}
    for name, curve in recipe.parts()[(phase or 1) - 1].curves.items():
        metrics |= {f"curve/{place}": value for place, value in curve.numbers(name, iteration, steps)}
    return metrics
