"""TransformerLens: its names, its cache and its interactive bridge, for rankers."""
