"""Whether a model that was given is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from pyterrier_mechir.models.checkpoints import fingerprint
from pyterrier_mechir.models.twins import looks_as, looks_of
from pyterrier_mechir.verify.checks import Finding
from pyterrier_mechir.verify.outcome import FAIL, OK
from pyterrier_mechir.verify.subject import Subject


def untouched(subject: Subject) -> Callable[[], Finding]:
    """Remember how a ranker's model and tokenizer are; what is returned says whether they are so still."""
    model, tokenizer = subject.ranker.model, subject.ranker.tokenizer
    looks, weights = looks_of(model), fingerprint(model.state_dict(), tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    modes = [module.training for module in model.modules()]
    gradients = [weight.grad is None for weight in model.parameters()]
    of_torch = torch.is_grad_enabled(), torch.get_default_dtype()

    def found() -> Finding:
        changed = [
            what
            for what, is_same in {
                "its modules, attributes or hooks": looks_as(model, looks),
                "its weights, or its tokenizer's tokens": fingerprint(model.state_dict(), tokenizer) == weights,
                "whether its modules train": [module.training for module in model.modules()] == modes,
                "its gradients": [weight.grad is None for weight in model.parameters()] == gradients,
                "how its tokenizer cuts and pads": json.loads(tokenizer.backend_tokenizer.to_str()) == backend,
                "torch's own modes": (torch.is_grad_enabled(), torch.get_default_dtype()) == of_torch,
            }.items()
            if not is_same
        ]
        told = "Weights, modules, hooks, gradients and tokenizer were compared with what they were before all checks."
        if changed:
            return Finding(f"{told} Changed: {', '.join(changed)}.", float(len(changed)), 0.0, FAIL)
        return Finding(told, 0.0, 0.0, OK)

    return found
