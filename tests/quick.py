"""Whether something takes no time to speak of, on whatever processor and beside whatever else runs."""

from __future__ import annotations

import time
from collections.abc import Callable

_TRIES = 5


def is_quick(call: Callable[[], object], seconds: float) -> bool:
    """Whether a call takes less CPU time than a limit, which what is quadratic exceeds by far, in one of five tries.

    One try says little: other processes, or a collection of garbage, can take a second of any.
    """
    for _ in range(_TRIES):
        begin = time.process_time()
        call()
        if time.process_time() - begin < seconds:
            return True
    return False
