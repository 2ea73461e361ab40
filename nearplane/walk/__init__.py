"""The walk: calibration text -> activations -> Hessians -> rounded layers, block by block.

In come an open model, a method, token sequences, a selection of layers and a `Placement`; out go,
one after the other, layers with their quantized weights and reports. This folder predicts no time
or memory (`plan/` does) and writes no checkpoint (`export/` does).

A stage is those layers of a block whose input is the same tensor, so that they share a Hessian. The
quantized stream is the hidden states behind quantized blocks, the original stream those behind
original blocks.

Read `walk.py` first: it follows the blocks. `capture.py` runs one block, `streams.py` both
streams through it, `rounding.py` hands a stage of layers to the method.

| file | what is in it |
|---|---|
| calibration, documents | text in many formats -> token sequences, every token accounted for |
| trace | one short run: which layers share an input, in which order they run |
| capture | running one block at a time, with pauses in front of chosen layers |
| hidden_states | the hidden states between two blocks, in memory or in a file |
| placement | where a walk's tensors live: the one owner of device, memory, file and type |
| streams | the quantized and the original hidden states through one block |
| hessian, input_statistics | sums over a stage's inputs |
| expert_inputs, expert_hessians | the tokens that enter experts, and Hessians of experts with few |
| rms_norm | what a change of a norm's output means for the layer before it |
| sensitivity | how much the predictions change when one layer is rounded |
| rounding | the layers that share an input: basis, targets, method, report |
| walk | block after block, stage after stage |
| report | what is reported of a layer |
| ranks, messages | the processes that quantize one model together |
"""
