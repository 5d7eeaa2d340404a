# Exercise 2.3
over = (by_query(frames["term"]) - by_query(frames["control"])).mean()

checks.over_control(over, frames["term"], frames["control"])
