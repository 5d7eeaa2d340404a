"""Heads are switched off in the weights, and transformers loads the checkpoint without this package."""

from tempfile import mkdtemp

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pyterrier_mechir import Scale

edited = ranker.edited([Scale("L0H1", 0.0), Scale("L1H2", 0.0)])
directory = edited.save_pretrained(mkdtemp() + "/pruned")
model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
tokenizer = AutoTokenizer.from_pretrained(directory)
query, text = "ocean tides", "The moon pulls the ocean, and the tides rise."
with torch.no_grad():
    logit = model(**tokenizer(query, text, return_tensors="pt")).logits.item()
np.testing.assert_allclose(logit, edited.score([query], [text]).item(), rtol=1e-4)
