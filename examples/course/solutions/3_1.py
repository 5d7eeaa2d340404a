# Exercise 3.1
def denoise(patched, baseline, perturbed):
    return (patched - baseline) / (perturbed - baseline)


def noise(patched, baseline, perturbed):
    return (perturbed - patched) / (perturbed - baseline)


checks.two_effects(denoise, noise)
