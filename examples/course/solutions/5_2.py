# Exercise 5.2
methods = table[table["method"].isin(list(told))].set_index("method")
as_good_as_random = methods.index[methods["deletion_over_random_high"] >= 0].tolist()
better_than_query_terms = methods.index[methods["deletion_over_query_terms_high"] < 0].tolist()

checks.believable(as_good_as_random, better_than_query_terms, table)
