"""Base models: from a checkpoint to what can be trained, with its head, tokenizer and fingerprints."""
