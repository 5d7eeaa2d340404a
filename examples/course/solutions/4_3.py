# Exercise 4.3
def chosen_and_reported(moved, apart, choose, report):
    best = (moved[choose].mean(axis=0) / apart[choose].mean()).argmax()
    return best, moved[report, best].mean() / apart[report].mean()


checks.chosen_and_reported(chosen_and_reported)
