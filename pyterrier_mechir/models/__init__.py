"""A transformers model opened up: where its parts are, recording, replaying, gradients."""
