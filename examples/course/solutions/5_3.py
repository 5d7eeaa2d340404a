# Exercise 5.3
turning = ["tides"]

checks.turned_order(turning, ranker, query, above["text"], below["text"])
