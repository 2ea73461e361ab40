"""What a causal language model is, to nearplane: its files, its blocks, its linear layers.

In come a directory, a hub name or a GGUF file; out go a model on the meta device, the same model
with its weights, and a `Selection` that says which layers are quantized and why the others are
not. Nothing here calibrates, rounds or predicts. Models to quantize are loaded through transformers
here; their files may come from a stranger, and are checked before a library parses them.

Read `open_model.py` first, then `selection.py`.

| file | what is in it |
|---|---|
| open_model | opening a model, without weights and with them |
| weight_files | whether safetensors files are whole and fit config.json; the model on meta |
| gguf_header | whether a GGUF file's header is whole |
| untrusted_files | other checks of files from strangers |
| blocks | a model's blocks and linear layers, found by walking its modules |
| experts | experts one by one, in place of modules that keep them in 3-D tensors |
| output_head | the output head, and the embedding that it may share its weight with |
| selection | which layers are quantized, which are left out, and why |
| meta_run | a forward pass on the meta device: which layers share an input |
| operator_count | how many operators run, and what they move |
| block_loading | loading the weights of blocks one at a time |
| compute_dtype | the type that products run in, measured on this processor |
| process_memory | giving memory back to the system, and how much there is |

A family that transformers knows needs no line here: blocks and layers are found by walking the
model. A new kind of layer outside of the blocks, as embeddings are, is a name in
`Selection.outside`.
"""
