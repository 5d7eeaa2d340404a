"""Trains a small cross-encoder whose causal circuit is known, and measures that it is what it was built to be.

Run it with ``python examples/known_circuit/train.py query OUT`` (or ``document``); it needs
``pip install pyterrier-mechir`` on Linux (for PISA), one core, and less than ten minutes. It is deterministic: on one
machine the same options give the same bits.

- ``groups.py``: the data. Synthetic queries of the passages of ``mechir:lab``, whose topics and judgments are not read.
- ``circuit.py``: the construction, and the interventions of the training.
- ``train.py``: the training, in which the circuit's own causal claims are the task: the matching head's output is
  exchanged between two documents and the target with it, and heads of no use are ablated and nothing may change.
- ``evidence.py``: what is measured of the trained model, on the topics of ``mechir:lab``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyterrier as pt
import torch
from circuit import Draft, Interventions, Roles, draft, head
from groups import ROWS, Groups
from torch import Tensor
from transformers import BertForSequenceClassification

PLACES = {
    "query": {"matching": "L1H2", "gathering": "L2H0,L2H3", "decoy": "L1H0"},
    "document": {"matching": "L1H1", "gathering": "L2H2", "decoy": "L1H3"},
}


@dataclass
class Training:
    """A training under way.

    Args:
        roles: what the heads are for.
        seed: of weights, data and interventions.
        n_steps: after how many steps it ends; the learning rate falls until then.
        rate: the highest learning rate of Adam; that of embeddings is half as high.
        n_tokens: about how many tokens a batch has.
        exchange: share of pairs of mates that exchange the matching head's output.
        ablate: share of steps with heads ablated, each of those of no use with probability one half.
    """

    roles: Roles
    seed: int = 0
    n_steps: int = 2000
    rate: float = 2e-3
    n_tokens: int = 4000
    exchange: float = 0.35
    ablate: float = 0.7

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self._random = Random(self.seed)
        texts = [document["text"] for document in pt.get_dataset("mechir:lab").get_corpus_iter()]
        self.groups = Groups(texts, self.seed, per_query=self.roles.direction == "query")
        self._draft: Draft = draft(self.groups.vocabulary, self.groups.idf, self.roles, self.seed)
        self.model: BertForSequenceClassification = self._draft.model
        self._interventions = Interventions(self.model, self.roles.matching)
        embeddings = self.model.bert.embeddings
        tables = [embeddings.word_embeddings.weight, embeddings.position_embeddings.weight]
        rest = [weight for weight in self.model.parameters() if all(weight is not table for table in tables)]
        groups = [{"params": rest, "top": self.rate}, {"params": tables, "top": self.rate / 2}]
        self._optimizer = torch.optim.Adam(groups, lr=self.rate, betas=(0.9, 0.98))
        self.losses: list[float] = []

    def step(self) -> None:
        """Draw a batch and its interventions, and take a step."""
        batch = self.groups.batch(self.n_tokens)
        n = len(batch.targets)
        exchanged = (torch.rand(n // 2) < self.exchange).repeat_interleave(2)
        row = torch.arange(n) ^ exchanged.long()
        is_ablated = self._random.random() < self.ablate
        chosen = [one for one in self.roles.useless() if is_ablated and self._random.random() < 0.5]
        self._interventions.exchanged = row
        self._interventions.ablated = {one: self._random.choice(("zero", "mean", "resample")) for one in chosen}
        scores, targets = self.model(**batch.inputs).logits[:, 0], batch.targets[row]
        loss = (_centred(scores) - _centred(targets)).square().mean() + 0.1 * (scores - targets).square().mean()
        self._learn(loss)
        self.losses.append(loss.item())

    def _learn(self, loss: Tensor) -> None:
        done = len(self.losses)
        for group in self._optimizer.param_groups:
            group["lr"] = (
                group["top"] * min(1, (done + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * done / self.n_steps))
            )
        self._optimizer.zero_grad()
        loss.backward()
        for weight, mask in self._draft.trained.items():
            if weight.grad is not None:
                weight.grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()

    def run(self) -> None:
        """Take all steps."""
        begin = time.perf_counter()
        while len(self.losses) < self.n_steps:
            self.step()
            if len(self.losses) % 100 == 0:
                mean = sum(self.losses[-100:]) / 100
                print(f"{len(self.losses)} steps, {time.perf_counter() - begin:.0f} s, loss {mean:.3f}", flush=True)

    def save(self, directory: Path) -> None:
        """Write the checkpoint in half precision, and its tokenizer."""
        self.model.half().save_pretrained(directory)
        self.groups.tokenizer.save_pretrained(directory)


def _centred(values: Tensor) -> Tensor:
    """Of each group its differences from its mean: how documents of one query compare."""
    groups = values.view(-1, ROWS)
    return groups - groups.mean(dim=1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=sorted(PLACES))
    parser.add_argument("out", type=Path, help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--matching", metavar="HEAD", help="such as L0H3")
    parser.add_argument("--gathering", metavar="HEADS", help="one or more of the last layer, such as L2H0,L2H2")
    parser.add_argument("--decoy", metavar="HEAD")
    options = parser.parse_args()
    names = {role: getattr(options, role) or default for role, default in PLACES[options.direction].items()}
    gathering = tuple(head(name) for name in names["gathering"].split(","))
    roles = Roles(options.direction, head(names["matching"]), gathering, head(names["decoy"]))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training = Training(roles, options.seed, options.steps)
    begin = time.process_time()
    training.run()
    seconds = round(time.process_time() - begin)
    training.save(options.out)
    facts = {"direction": options.direction, **names, "seed": options.seed, "steps": options.steps, "seconds": seconds}
    (options.out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    from evidence import write_evidence

    write_evidence(options.out)


if __name__ == "__main__":
    main()
