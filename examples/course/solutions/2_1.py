# Exercise 2.1
import re


@perturbation(alignment="fill", sign="+")
def add_missing(text, query):
    of_text = set(re.findall(r"\w+", text.lower()))
    missing = [word for word in re.findall(r"\w+", query) if word.lower() not in of_text]
    return " ".join([text, *missing]) if missing else None


checks.missing_terms(add_missing)
