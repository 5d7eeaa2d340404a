# Exercise 3.4
place = "Q+"

checks.where_it_acts(place, by_class, "L1H2")
