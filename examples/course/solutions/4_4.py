# Exercise 4.4
claims = {"a": False, "b": False, "c": True, "d": False, "e": True}

checks.which_claims(claims)
