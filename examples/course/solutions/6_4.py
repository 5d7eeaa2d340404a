# Exercise 6.4
directory = broken.edited([Scale(effects["docno"].iloc[0], 0.0)]).save_pretrained(checks.new_directory())

checks.saved(directory, broken.edited([Scale(effects["docno"].iloc[0], 0.0)]), broken)
