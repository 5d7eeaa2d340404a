# Exercise 1.2
to_match = attention[:, :, classes.index("Q-"), classes.index("D-")]
heads = {f"L{layer}H{head}" for layer, head in np.argwhere(to_match > 0.99 * to_match.max())}

checks.lookers(heads, attention, classes)
