# Exercise 6.1
found = effects.sort_values("score")["docno"].iloc[-1]

checks.harmful_head(found, effects)
