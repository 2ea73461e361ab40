"""A checkpoint as a GGUF file: llama.cpp's block types, metadata and vocabulary.

`formats/gguf.py` writes the file; nothing else imports this folder, which needs the package gguf.

| file | what it does |
|---|---|
| blocks | integers and steps -> the bytes of llama.cpp's block types |
| tensors | the checkpoint's tensors under llama.cpp's names, experts of a block together |
| architecture | a configuration -> metadata, by family |
| vocabulary | a tokenizer -> tokens, scores or merges, and how text is split |
"""
