"""What a run shows without patching: attention, layers, terms of the score."""
