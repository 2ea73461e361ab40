"""Measure what a quantized model is worth, and check what its checkpoint claims.

- Comes in: a model and a text, or a checkpoint directory, possibly with the original model.
- Goes out: frozen dataclasses of numbers; `sentence()` is their line for people and `for_json()`
  their dictionary. `verify` returns its problems as sentences.
- This folder changes no checkpoint, and prints nothing; `nearplane.cli` does.

Read `perplexity.py` first.

| file | what it does |
|---|---|
| perplexity | perplexity of a model on a text |
| divergence | KL divergence and top-1 agreement with the original model |
| intervals | 95 % confidence intervals of figures over the windows of a text |
| tasks | answers to tasks of lm-evaluation-harness, without the network |
| paired_answers | whether two models' answers to the same questions differ by chance |
| writing | text that a model writes, word by word |
| bits | what the bytes of a checkpoint are used for, and bits per weight |
| verify | whether a checkpoint is undamaged, and the errors it states are true |
| replay | runs calibration again with a checkpoint's values, for `verify` |

To add a measurement, write a function of (model, windows, options) like `perplexity`, which gets
its logits from `scored_logits`, and give its interval as `intervals.py` does; its lines and its
entry in report.json are made in `nearplane/cli/evaluation.py`.
"""
