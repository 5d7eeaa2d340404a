# Exercise 2.4
answer = "d"

checks.which_filler(answer)
