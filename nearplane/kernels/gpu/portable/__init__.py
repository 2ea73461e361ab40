"""Products with codes of fixed width in Triton: for any GPU it knows, and without NVRTC."""
