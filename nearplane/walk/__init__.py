"""The only room that knows transformers exist: calibration, capture, the order of blocks.

| file | idea |
|---|---|
| source | opening a model: a directory, a hub name, a GGUF file |
| documents | reading text in the formats people have |
| calibration | text to packed sequences, with an account of every token |
| blocks | a model's blocks and linear layers, found by walking it |
| observe | which layers share their inputs, seen in one short run |
| capture | running one block at a time, with pauses |
| streams | the quantized and the original hidden states through one block |
| hessian | the second moment of a layer's inputs |
| borrow | experts that few tokens reach: their Hessians borrow from their layer |
| drift | how the two streams hang together, summed over tokens |
| norm | what a change behind a norm asks of the layer in front of it |
| probe | what each layer is worth to the model's predictions, by forward passes |
| walk | block after block, stage after stage |
| head | the output head, when asked |
| memory | giving memory back to the system |
| report | the account of a whole run |
| flow | a run without numbers: what shares inputs, and what share of tokens |
| plan | what a run would take, before a weight is loaded |
"""
