# Exercise 4.1
ratio = moved.mean() / apart.mean()

checks.ratio_of_means(ratio, patched, LAYER, HEAD)
