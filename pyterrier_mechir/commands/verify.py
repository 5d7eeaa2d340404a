"""What ``pyterrier-mechir verify`` does: check a checkpoint, row by row, on a terminal or as JSON."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.commands.rankers import of_family, quiet_transformers
from pyterrier_mechir.commands.tables import read


def run(options: Namespace) -> int:
    """Check a ranker; see ``pyterrier-mechir verify --help`` for the options.

    Returns:
        The exit status: 0 where no check failed, else 1.

    Raises:
        CommandError: the ranker or the pairs cannot be had, or there is not enough memory.
    """
    from pyterrier_mechir.verify import check_ranker
    from pyterrier_mechir.verify.memory import check_memory

    quiet_transformers()
    try:
        frame = None if options.data is None else read(options.data, "query and text")
        check_memory(options.ranker)
        ranker = of_family(options.ranker, options.family, options.setting, verbose=not options.json)
        if not options.json:
            print(f"Checking {ranker!r}.\n", flush=True)
        found = check_ranker(ranker, frame, progress=None if options.json else _say)
    except (ValueError, TypeError, OSError) as error:
        raise CommandError(str(error)) from error
    print(found.to_json() if options.json else f"\n{found.summary}")
    return 0 if found.passed else 1


def _say(check: Any) -> None:
    print(check, flush=True)
