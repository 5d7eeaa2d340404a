"""A pair's score is the same in any batch, to the last digits of float32."""

queries, texts = frame["query"].tolist(), frame["text"].tolist()
together = ranker.score(queries, texts)
alone = [ranker.score([query], [text]).item() for query, text in zip(queries, texts, strict=True)]
np.testing.assert_allclose(together, alone, rtol=1e-5)
