"""Files and foreign systems: the native checkpoint, and transformers reading it.

| file | idea |
|---|---|
| layout | what a checkpoint's files are called, what config.json says of its layers |
| sums | SHA256SUMS in the one form that its directory dictates |
| partial | a directory that appears whole or not at all |
| lock | one run at a time for an output directory |
| checkpoint_writer | tensors one by one -> a checkpoint |
| ledger | what an unfinished run has done, for the run that goes on with it |
| remaining | the tensors that are stored as the model has them |
| companions | tokenizer, licence and such: files copied from the source model |
| checkpoint_reader | a checkpoint -> tensors one by one, and what is wrong with it |
| record_check | whether a record is whole and its layer's |
| linear | a linear layer that multiplies by its record |
| experts | splitting the experts of a model that a checkpoint names one by one |
| transformers | from_pretrained, save_pretrained and dequantize for such layers |
| registration | transformers learns of us when somebody imports it, and no sooner |
| load | a directory or hub name -> a model |
| vllm/ | vLLM's plugin: layers fused and cut for several processes |

The format is docs/formats/checkpoint.md. Nothing is imported here: `import nearplane` must not
wait for transformers.
"""
