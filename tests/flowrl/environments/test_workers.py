"""Calls beside the main thread: in order, several at once, none waited for longer than its deadline."""

import threading
import time
from functools import partial

from flowrl.environments.workers import LateError, Workers


def _failing(i: int) -> int:
    if i % 7 == 3:
        raise SystemExit(i)
    return i * i


def test_results_and_failures_keep_their_places():
    given = Workers(3)([partial(_failing, i) for i in range(40)])
    for i, one in enumerate(given):
        assert isinstance(one, SystemExit) if i % 7 == 3 else one == i * i
    assert Workers(3)([]) == []


def test_no_more_than_their_number_run_at_once_and_none_on_the_main_thread():
    lock, running, most, names = threading.Lock(), [0], [0], set()

    def call() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            names.add(threading.current_thread().name)
        time.sleep(0.002)
        with lock:
            running[0] -= 1

    Workers(4)([call] * 30)
    assert 2 <= most[0] <= 4 and threading.main_thread().name not in names


def test_late_calls_are_left_behind_and_hold_up_nobody():
    never = threading.Event()
    calls = [never.wait if i % 5 == 0 else partial(_failing, 1) for i in range(20)]
    start = time.monotonic()
    given = Workers(2, 0.5)(calls)
    assert time.monotonic() - start < 20
    assert [isinstance(one, LateError) for one in given] == [i % 5 == 0 for i in range(20)]
    never.set()
    time.sleep(0.01)
    assert all(isinstance(given[i], LateError) for i in range(0, 20, 5))  # what comes later changes nothing


def test_weights_lengthen_a_deadline():
    slow = partial(time.sleep, 0.6)
    given = Workers(2, 0.3)([slow, slow], [1, 20])
    assert isinstance(given[0], LateError) and given[1] is None
