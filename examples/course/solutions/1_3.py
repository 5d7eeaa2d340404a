# Exercise 1.3
share = (1 + agreement["tau"]) / 2
is_above = share > 0.75
layer = int(agreement["layer"][is_above[::-1].cummin()].min())

checks.settled_layer(layer, agreement)
