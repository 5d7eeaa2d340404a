"""What the stages share: checks of frames, the pairs in their rows, columns of results, and base classes."""
