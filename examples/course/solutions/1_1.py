# Exercise 1.1
written = cache["z", 1][0, tokens.index("tides"), 2]

checks.output_of_head(written, cache, tokens)
