"""A model that was fine-tuned (here: saved anew) is loaded from a directory, and from memory, and is checked."""

from tempfile import mkdtemp

from transformers import AutoModelForSequenceClassification

from pyterrier_mechir import CrossEncoder, check_ranker, load_ranker

directory = mkdtemp()
for part in (ranker.model, ranker.tokenizer):
    part.save_pretrained(directory)

mine = load_ranker(directory, verbose=False)
in_memory = CrossEncoder((AutoModelForSequenceClassification.from_pretrained(directory), ranker.tokenizer))
query, text = ["ocean tides"], ["The moon pulls the ocean, and the tides rise."]
assert type(mine) is CrossEncoder
np.testing.assert_allclose(mine.score(query, text), in_memory.score(query, text), rtol=1e-5)
assert check_ranker(mine, frame.head(2)).passed
