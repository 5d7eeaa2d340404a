"""The ``pt.Transformer`` stages: from frames to frames. How a model is hooked and patched lies in the layers below."""
