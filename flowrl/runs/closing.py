"""What a run ends with."""

from collections.abc import Mapping
from dataclasses import asdict

from flowrl.core.evaluation import Evaluation
from flowrl.runs.run_state import RunState
from flowrl.untyped import JSON


def closing(state: RunState, evaluations: Mapping[int, Evaluation]) -> tuple[dict[str, JSON], dict[int, Evaluation]]:
    """The contents of summary.json, and the evaluations of the weights that the run ends with and before."""
    heldout = {i: {n: asdict(m) for n, m in e.means().items()} for i, e in sorted(evaluations.items())}
    summary = {"iterations": state.iteration, "seconds": round(state.elapsed, 1), "spent": state.spent[0]}
    summary |= {"heldout": heldout} | ({"rolled_back": state.rolled_back} if state.rolled_back else {})
    last = state.iteration if state.rolled_back is None else state.rolled_back["to"]
    return summary, {i: evaluation for i, evaluation in evaluations.items() if i <= last}
