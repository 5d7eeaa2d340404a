"""Equality, hash and repr of stages."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyterrier as pt


class Keyed:
    """Equality, hash and repr from the settings of a stage, as ``pt.Experiment`` needs to share equal stages.

    Every parameter of the constructor is an attribute of the same name.
    """

    def _key(self) -> tuple[Any, ...]:
        return tuple(_frozen(attribute.value) for attribute in pt.inspect.transformer_attributes(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Keyed) or type(other) is not type(self):
            return NotImplemented
        return bool(self._key() == other._key())

    def __hash__(self) -> int:
        return hash((type(self), *self._key()))

    def __repr__(self) -> str:
        shown: list[str] = []
        for attribute in pt.inspect.transformer_attributes(self):  # type: ignore[arg-type]
            if attribute.name == "verbose" or _is_same(attribute.value, attribute.init_default_value):
                continue
            is_positional = attribute.name in ("ranker", "perturbation") and not shown
            shown.append(
                _written(attribute.value) if is_positional else f"{attribute.name}={_written(attribute.value)}"
            )
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_same(value: Any, default: Any) -> bool:
    return not isinstance(value, pd.DataFrame) and bool(value == default)


def _written(value: Any) -> str:
    return f"<{len(value)} rows>" if isinstance(value, pd.DataFrame) else repr(value)


def _frozen(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return tuple(value.columns), pd.util.hash_pandas_object(value, index=False).to_numpy().tobytes()
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value
