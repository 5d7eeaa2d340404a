# Exercise 5.1
whole, left = ranker.score([query] * 2, [text, checks.without(text, "tides", "tide")])
lost = whole - left

checks.both_forms(lost, ranker, query, text, ("tides", "tide"))
