# Exercise 3.2
circuit = {"matching": "L1H2", "gathering": ["L2H0", "L2H3"], "decoy": "L1H0"}

checks.named_circuit(circuit, truth)
