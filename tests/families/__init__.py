"""Every causal language model class that transformers registers, as a tiny random model."""
