# Exercise 1.4
answer = "c"

checks.what_attention_says(answer)
