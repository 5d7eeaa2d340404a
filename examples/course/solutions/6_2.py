# Exercise 6.2
mended = broken.edited([Scale(effects["docno"].iloc[0], 0.0)])

checks.repaired(mended, broken, candidates, effects["docno"].iloc[0])
