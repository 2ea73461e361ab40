"""The only room that knows transformers exist: calibration, capture, the order of blocks.

| file | idea |
|---|---|
| source | opening a model: a directory, a hub name, a GGUF file |
| documents | reading text in the formats people have |
| calibration | text to packed sequences, with an account of every token |
| blocks | a model's blocks and linear layers, found by walking it |
| observe | which layers share their inputs, seen in one short run |
| capture | running one block at a time, with pauses |
| loader | blocks that lie on disk until the walk comes to them |
| states | hidden states between two blocks, in memory or in a file |
| room | what may stay in memory from one stage to the next |
| means | how a run keeps within its memory |
| streams | the quantized and the original hidden states through one block |
| hessian | the second moment of a layer's inputs |
| routed | what enters the experts of a layer, kept so that no expert needs another run |
| borrow | experts that few tokens reach: their Hessians borrow from their layer |
| drift | how the two streams hang together, summed over tokens |
| norm | what a change behind a norm asks of the layer in front of it |
| probe | what each layer is worth to the model's predictions, by forward passes |
| walk | block after block, stage after stage |
| ranks | the processes that quantize one model together |
| parcel | tensors to bytes that are sent to other processes |
| head | the output head, when asked |
| memory | giving memory back to the system |
| report | the account of a whole run |
| flow | a run without numbers: what shares inputs, and what share of tokens |
| survey | what a model has to quantize, from its configuration alone |
| work | the parts of a run: how much work each is, and how processes divide it |
| footprint | the bytes of a run, in memory and on the disk |
| rates | what this machine does in a second, measured |
| devices | the devices that a plan can speak of, by stated rates |
| amount | how much calibration a run takes: as asked for, by default, or as fits a time |
| plan | what a run would take: hours and gigabytes, with all that they rest on |
"""
