"""The circuit: what each head is for, its first draft in the weights, and the interventions of the training.

Coordinates of the residual stream are set apart by what they hold: the content of a word (words of one stem share most
of theirs), its position, whether it stands in the query or the document, its rarity, the *mark* that the matching head
makes, the *output* that the gathering heads make, and *junk*, which only heads of no use write to and nothing reads.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from groups import LONGEST, SEP, SPECIAL, stem
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

N_LAYERS, N_HEADS, WIDTH = 3, 4, 96
HEAD_WIDTH = WIDTH // N_HEADS
CONTENT, POSITION, JUNK = slice(0, 56), slice(56, 70), slice(84, 96)
SIDE, RARITY, MARK, OUTPUT = 70, 71, 72, 76

_LEAK = 0.01
"""What heads of no use write outside the junk: their standard deviation there, an entry of the output projection."""

_MATCH = 16.0
"""The attention logit of two words of one stem, before layer normalisation."""

Head = tuple[int, int]


def head(name: str) -> Head:
    """Layer and number of a head, from a name such as ``L1H2``.

    Raises:
        ValueError: no head of this model has that name.
    """
    found = re.fullmatch(rf"L([0-{N_LAYERS - 1}])H([0-{N_HEADS - 1}])", name)
    if found is None:
        raise ValueError(f"{name!r} is none of the heads L0H0 to L{N_LAYERS - 1}H{N_HEADS - 1}.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Roles:
    """Where the roles stand.

    Args:
        direction: ``"query"``: query tokens look for themselves in the document; ``"document"``: the reverse.
        matching: the head that finds equal words and marks where it found them.
        gathering: the heads that bring the marks to [CLS].
        decoy: the head that attends as the matching head does, and whose output nothing reads.

    Raises:
        ValueError: a head has two roles, or stands where the part cannot be played.
    """

    direction: str
    matching: Head
    gathering: tuple[Head, ...]
    decoy: Head

    def __post_init__(self) -> None:
        placed = [self.matching, *self.gathering, self.decoy]
        if len(set(placed)) < len(placed):
            raise ValueError("a head has two roles; give each role heads of its own.")
        if any(layer != N_LAYERS - 1 for layer, _ in self.gathering) or self.matching[0] == N_LAYERS - 1:
            raise ValueError("gathering heads stand in the last layer, and the matching head before it.")
        if self.decoy[0] > self.matching[0]:
            raise ValueError("the decoy stands in the matching head's layer or before it; later, words are less clear.")

    def of(self, one: Head) -> str:
        """The role of a head."""
        if one in self.gathering:
            return "gathering"
        return {self.matching: "matching", self.decoy: "decoy"}.get(one, "inert")

    def useless(self) -> list[Head]:
        """The heads that are no part of the circuit: the decoy and the inert ones."""
        every = [(layer, number) for layer in range(N_LAYERS) for number in range(N_HEADS)]
        return [one for one in every if self.of(one) in ("decoy", "inert")]


def columns(number: int) -> slice:
    """Where a head's part of z lies."""
    return slice(number * HEAD_WIDTH, (number + 1) * HEAD_WIDTH)


@torch.no_grad()
def draft(vocabulary: dict[str, int], idf: dict[str, float], roles: Roles, seed: int) -> Draft:
    """A model with a first draft of the circuit, and which entries of its weights are trained."""
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LONGEST,
        num_labels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    made = Draft(BertForSequenceClassification(config), roles, torch.Generator().manual_seed(seed))
    made.embed(vocabulary, idf)
    for layer in range(N_LAYERS):
        made.attention(layer)
    for part in [*(layer.intermediate.dense for layer in made.layers), made.model.bert.pooler.dense]:
        part.weight[:, JUNK] = 0
        made.trained[part.weight] = torch.ones_like(part.weight)
        made.trained[part.weight][:, JUNK] = 0
    made.model.bert.pooler.dense.weight[0, OUTPUT] = 0.5
    return made


class Draft:
    """A model under construction.

    Args:
        model: the model, whose weights are written.
        roles: what its heads are for.
        generator: what random weights are drawn from.
    """

    def __init__(self, model: BertForSequenceClassification, roles: Roles, generator: torch.Generator):
        self.model, self.layers, self.roles, self._generator = model, model.bert.encoder.layer, roles, generator
        self.trained: dict[Tensor, Tensor] = {}
        """For weights that are not trained as a whole: 1 where an entry is trained, else 0."""
        width = CONTENT.stop
        scale = math.sqrt(_MATCH * math.sqrt(HEAD_WIDTH) / (HEAD_WIDTH - 2))
        self._same_word = scale * torch.linalg.qr(self._random(width, HEAD_WIDTH - 2))[0].T
        self._separator = torch.zeros(WIDTH)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    @property
    def _of_query(self) -> bool:
        return self.roles.direction == "query"

    def embed(self, vocabulary: dict[str, int], idf: dict[str, float]) -> None:
        embeddings = self.model.bert.embeddings
        own = 0.2 if self._of_query else 0.34
        words, places, sides = torch.zeros(len(vocabulary), WIDTH), torch.zeros(LONGEST, WIDTH), torch.zeros(2, WIDTH)
        shared: dict[str, Tensor] = {}
        for word, number in sorted(vocabulary.items()):
            if stem(word) not in shared:
                shared[stem(word)] = self._random(CONTENT.stop)
            words[number, CONTENT] = math.sqrt(1 - own**2) * shared[stem(word)] + own * self._random(CONTENT.stop)
            words[number, RARITY] = -3 if word in SPECIAL else idf.get(stem(word), 4) / 2 - 1.5
        angles = torch.arange(LONGEST)[:, None] / 3.0 ** torch.arange(7)
        places[:, POSITION] = torch.cat([angles.sin(), angles.cos()], dim=1) / 2
        sides[:, SIDE] = torch.tensor([2.0, -2.0])
        for table, values in (("word", words), ("position", places), ("token_type", sides)):
            getattr(embeddings, f"{table}_embeddings").weight.copy_(values)
        self._separator = words[SEP] / words[SEP].norm()

    def attention(self, layer: int) -> None:
        """Write the heads of a layer."""
        attention = self.layers[layer].attention
        query, key, value = (getattr(attention.self, name) for name in ("query", "key", "value"))
        out = attention.output.dense
        for part in (query, key, value, out):
            part.weight.copy_(0.02 * self._random(WIDTH, WIDTH))
            part.bias.zero_()
            self.trained[part.weight] = torch.ones(WIDTH, WIDTH)
        for part in (query, key, value):
            self.trained[part.bias] = torch.ones(WIDTH)
        for number in range(N_HEADS):
            its, role = columns(number), self.roles.of((layer, number))
            q, k, v, o = query.weight[its], key.weight[its], value.weight[its], out.weight[:, its]
            is_used = role in ("matching", "gathering")
            for part, is_trained in ((query, role == "gathering"), (key, role == "gathering"), (value, is_used)):
                self.trained[part.weight][its] = self.trained[part.bias][its] = float(is_trained)
            self.trained[out.weight][:, its] = float(is_used)
            if role in ("matching", "decoy"):
                self._match(q, k, query.bias[its])
            if role == "matching":
                self._mark(v, o)
            elif role == "gathering":
                self._gather(k, v, o, query.bias[its])
            else:
                if role == "inert":
                    self._idle(q, k, query.bias[its], (2 * layer + number) % 3)
                v.copy_(self._random(HEAD_WIDTH, WIDTH) / math.sqrt(WIDTH))
                o.copy_(_LEAK * self._random(WIDTH, HEAD_WIDTH))
                o[JUNK] = self._random(12, HEAD_WIDTH) / math.sqrt(12 * HEAD_WIDTH)
            if is_used:
                o[JUNK] = self.trained[out.weight][JUNK, its] = 0
                for part in (query, key, value):
                    part.weight[its, JUNK] = self.trained[part.weight][its, JUNK] = 0

    def _match(self, q: Tensor, k: Tensor, bias: Tensor) -> None:
        """Look for the same word, rather on the other side than on one's own."""
        q.zero_()
        k.zero_()
        q[:-2, CONTENT] = k[:-2, CONTENT] = self._same_word
        bias[-2], k[-2, SIDE] = (0.7, -0.7) if self._of_query else (3.0, 3.0)

    def _mark(self, v: Tensor, o: Tensor) -> None:
        """Mark a word by how much of its attention found it on the other side, and in a document by its rarity."""
        v[0, SIDE], o[MARK, 0] = (-1.0 if self._of_query else 1.0), 1.0
        if not self._of_query:
            v[1, SIDE], v[1, RARITY], o[MARK + 1, 1] = 0.5, 1.0, 1.0

    def _gather(self, k: Tensor, v: Tensor, o: Tensor, bias: Tensor) -> None:
        """From [CLS], look at rare words of the query, or at marked ones of the document, and take their marks."""
        bias[0] = 3
        v[0, MARK], o[OUTPUT, 0] = 1.0, 1.0
        if self._of_query:
            k[0, SIDE], k[0, RARITY] = 3.0, 2.0
        else:
            k[0, SIDE], k[0, MARK], k[0, MARK + 1] = -2.0, 2.0, 2.0
            v[1, MARK + 1], o[OUTPUT + 1, 1] = 1.0, 1.0

    def _idle(self, q: Tensor, k: Tensor, bias: Tensor, kind: int) -> None:
        """Attend as heads do that are found in trained models: by some content, to the neighbour, to the separator."""
        if kind == 2:
            bias[0], k[0] = 4, 2 * self._separator
        elif kind == 1:
            turn = 3.0 ** -torch.arange(7.0)
            sine, cosine = torch.diag(turn.sin()), torch.diag(turn.cos())
            q.zero_()
            k.zero_()
            q[:14, POSITION] = 6 * torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])
            k[:14, POSITION] = 6 * torch.eye(14)
        else:
            q.copy_(0.12 * self._random(HEAD_WIDTH, WIDTH))
            k.copy_(0.12 * self._random(HEAD_WIDTH, WIDTH))


class Interventions:
    """What is done to z, the heads' outputs, while a model runs.

    Args:
        model: the model, to which hooks are added.
        matching: its matching head.
    """

    def __init__(self, model: BertForSequenceClassification, matching: Head):
        self._matching = matching
        self.exchanged: Tensor | None = None
        """The row from which each row takes the matching head's z, ``[rows]``."""
        self.ablated: dict[Head, str] = {}
        """How heads are ablated: ``zero``, ``mean`` or ``resample``."""
        for number, layer in enumerate(model.bert.encoder.layer):
            layer.attention.output.dense.register_forward_pre_hook(
                lambda _, args, number=number: (self._changed(number, args[0]),)
            )

    def _changed(self, layer: int, z: Tensor) -> Tensor:
        changed = z.clone()
        if self.exchanged is not None and layer == self._matching[0]:
            its = columns(self._matching[1])
            changed[..., its] = z[self.exchanged][..., its]
        for (of_layer, number), how in self.ablated.items():
            if of_layer == layer:
                part = z[..., columns(number)]
                mean = part.mean(dim=(0, 1)).expand_as(part)
                changed[..., columns(number)] = {"zero": 0 * part, "mean": mean, "resample": part.roll(5, 0)}[how]
        return changed
