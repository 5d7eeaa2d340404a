# Exercise 4.2
n_queries = next(n for n in range(1, 100) if 2 / 2**n * 72 < 0.05)

checks.queries_needed(n_queries)
