"""Published numbers: finds, loads and compares the golden cases.

The cases live outside this repository, in `<checkout>/../shared/golden` or in the folder named by FLOWRL_GOLDEN. Where
they are absent `cases` yields a single skipped parameter, so that every test written on it says why it did not run. So
it does for a kind of case that another set, named by FLOWRL_GOLDEN, lacks; kinds and files of that set that no test
knows are passed over, counted and said (`account`, tests/conftest.py). Tests pick cases by kind and parameters, never
by id.
A case is a dict with `params`, `inputs`, `outputs`, `atol`, `rtol`, `scheme` or `method`, and at times `tol`, `note`.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(os.environ.get("FLOWRL_GOLDEN") or Path(__file__).parents[2] / "shared" / "golden")
OTHER = bool(os.environ.get("FLOWRL_GOLDEN"))  # a set that need not hold every kind of case
ABSENT = f"no golden cases at {ROOT}: set FLOWRL_GOLDEN to the folder that holds samplers/, objectives/ and direct/"
Case = dict[str, Any]
Check = Callable[[Case], None]
ASKED: set[str] = set()  # files that the collected tests have asked for


def kind(case: Case) -> str:
    """The name of what a case was computed by."""
    return case.get("scheme") or case["method"]


def checks(by_name: dict[str, Check], *names: str) -> Callable[[Check], Check]:
    """A decorator: the function checks cases of these names."""

    def register(function: Check) -> Check:
        by_name.update(dict.fromkeys(names, function))
        return function

    return register


@cache
def _read(relpath: str) -> list[Case]:
    ASKED.add(relpath)
    if OTHER and not (ROOT / relpath).is_file():
        return []
    read = json.loads((ROOT / relpath).read_text())
    for position, case in enumerate(read):
        case.setdefault("id", f"{Path(relpath).stem}-{position:03d}")
    return read


def load(relpath: str) -> list[Case]:
    """Every case of one file, each with an `id`; an empty list where the golden folder is absent.

    A folder that is there but lacks the file raises FileNotFoundError: a misspelt name must not read as a skip. Another
    set (FLOWRL_GOLDEN) may lack it, and has no case of it then.
    """
    return _read(relpath) if ROOT.is_dir() else []


def cases(*relpaths: str, where: Callable[[Case], bool] = lambda case: True) -> list:
    """The cases of these files that satisfy `where`, as pytest parameters named by their ids.

    Raises ValueError when nothing is left, since an empty parametrization would pass unseen; of another set
    (FLOWRL_GOLDEN) one skipped parameter says so, which pytest counts.
    """
    if not ROOT.is_dir():
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=ABSENT))]
    picked = [pytest.param(case, id=case["id"]) for path in relpaths for case in load(path) if where(case)]
    if not picked and OTHER:
        reason = f"{ROOT} has no case of this kind in {', '.join(relpaths)}"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    if not picked:
        raise ValueError(f"no case of {relpaths} was picked: loosen `where` or correct the file name")
    return picked


def account(found: Iterable[str], known: Iterable[str]) -> None:
    """Asserts that the kinds of some files' cases, one entry a case, are those that tests know, no more and no less.

    Of another set (FLOWRL_GOLDEN) they may be fewer, and others are counted and said, by a skip.
    """
    counts, known = Counter(found), set(known)
    unknown = {name: number for name, number in sorted(counts.items()) if name not in known}
    if not OTHER:
        assert not unknown, f"no test knows {unknown}"
        assert known <= set(counts), f"{ROOT} has no case of {sorted(known - set(counts))} any more"
    elif unknown:
        pytest.skip(f"{ROOT} has {sum(unknown.values())} cases of kinds that no test knows: {unknown}")


def unread() -> dict[str, int]:
    """The files of the folder that no collected test asked for, with how many cases each holds."""
    found = (path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("*/*.json")))
    return {name: len(json.loads((ROOT / name).read_text())) for name in found if name not in ASKED}


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value


def tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor of a stored value (number, nested lists, the strings nan/inf/-inf).

    Without a dtype: bool for booleans, int64 for whole numbers, float32 as soon as one entry is a float or a string.
    """
    if dtype is None:
        kinds = {type(leaf) for leaf in _leaves(value)}
        dtype = torch.bool if kinds == {bool} else torch.int64 if kinds == {int} else torch.float32
    return torch.tensor(_numbers(value), dtype=dtype)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def check(got: Mapping[str, Any], case: Case, *, skip: Iterable[str] = ()) -> None:
    """Asserts that `got` reproduces the outputs of a case within its own tolerances (nan equals nan, inf equals inf).

    got: name -> tensor, number or nested list; nested results are named by dots or given as nested dicts. Every output
    must be given or named in `skip` (a dotted prefix skips all beneath it), and `got` may hold nothing else. A stored
    scalar stands for any shape; otherwise shapes must agree. Lists with zero tolerance are compared as lists (they may
    be ragged), all else in float64.
    """
    wanted, given, skipped = _flat(case["outputs"]), _flat(got), set(skip)
    wanted = {name: want for name, want in wanted.items() if not {name, name.split(".")[0]} & skipped}
    assert given.keys() == wanted.keys(), f"{case['id']}: got {sorted(given)}, stored outputs are {sorted(wanted)}"
    for name, want in wanted.items():
        _compare(given[name], want, case, name)


def _compare(got: Any, want: Any, case: Case, name: str) -> None:
    atol, rtol = (case.get("tol") or {}).get(name) or (case["atol"], case["rtol"])
    leaves = list(_leaves(want))
    words = any(leaf is None or isinstance(leaf, str) and leaf.lstrip("+-") not in ("nan", "inf") for leaf in leaves)
    exact = atol == rtol == 0 and not isinstance(got, Tensor) and not any(isinstance(leaf, str) for leaf in leaves)
    if words or exact:
        assert got == want, f"{case['id']}: {name} is {got!r}, stored {want!r}"
        return
    actual = got.detach() if isinstance(got, Tensor) else tensor(got, torch.float64)
    actual, expected = actual.to("cpu", torch.float64), tensor(want, torch.float64)
    if expected.dim():
        assert actual.shape == expected.shape, f"{case['id']}: {name} has shape {actual.shape}, not {expected.shape}"
    close = torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    gap = (actual - expected).abs()[~close]
    assert close.all(), f"{case['id']}: {name} differs in {gap.numel()} of {close.numel()}, by {gap.max().item():.3g}"
