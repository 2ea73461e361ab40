"""What a run will take, before a weight is loaded: work, memory, disk, time.

In come a model without weights and a method; out goes an `Estimate`, with the offload that keeps
a run within its memory and the calibration that fits a time. `plan/` imports the folders whose work
it predicts, and takes their constants from them; none of them imports it, so that an edit here
changes no layer.

Read `estimate.py` first, then `work.py`.

| file | what is in it |
|---|---|
| survey | what a method would quantize of a model, from its configuration alone |
| run_size | how large a run is, and how its processes divide it |
| calibration_size | how many sequences: given, default, or as many as fit a time |
| sizes | sums over a model's layers to which the work is proportional |
| work | how much work each part of a run is |
| costs | the table: what each part computes, moves and starts, and what bounds it |
| throughput | how much work one process does in a second, measured |
| timers | clocks, and how long some functions of a method take |
| trial_matrix | a random matrix that a method is tried on |
| method_launches | what a method starts on an accelerator, counted |
| devices | this machine, measured, and accelerators, by their data sheets |
| footprint | the bytes of a run, in memory and on the disk |
| offload | which weights and hidden states stay in memory |
| estimate | all of it together, in sentences |

To add an accelerator, add an entry to `devices.DEVICES`. What a plan must know of a method are
attributes of its class (`methods/method.py`).
"""
