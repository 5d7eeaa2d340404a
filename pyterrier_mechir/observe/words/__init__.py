"""What the words of a text do to its score, and how far such an explanation can be believed."""
