"""The ``pt.Transformer`` stages. Nothing here knows of hooks."""
