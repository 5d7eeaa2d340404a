"""The sweep engine: patched scores of many pairs at many sites, computed exactly or estimated from gradients.

Nothing here knows of pandas or PyTerrier.
"""
