"""The sweep engine: which sites there are, running a model again with one replaced, and doing so for many pairs.

Nothing here knows of pandas or PyTerrier.
"""
