"""Read and write checkpoints, and let transformers and vLLM load them.

The format is docs/formats/checkpoint.md: safetensors files in which the weight of a compressed
layer is a record (docs/formats/record.md), and a `quantization_config` in config.json.

- Comes in: records and uncompressed tensors, one by one, from `nearplane.pipeline`; or a directory,
  which may be damaged or come from an attacker.
- Goes out: a checkpoint directory that appears complete or not at all; or a model whose linear
  layers are `CompressedLinear`. Whatever is wrong with a file raises `NearplaneError`.
- This folder may import `nearplane.codes`, `nearplane.model` and `nearplane.report`. It quantizes
  nothing.

Read `checkpoint_writer.py` first, then `checkpoint_reader.py`.

| file | what it does |
|---|---|
| checkpoint_format | names of a checkpoint's files, and the `quantization_config` of config.json |
| checkpoint_writer | writes a checkpoint tensor by tensor |
| shard_file | writes one safetensors file without keeping its tensors in memory |
| uncompressed | the tensors that are stored uncompressed |
| companion_files | tokenizer, licence and other files that are copied from the source model |
| checksums | writes and verifies SHA256SUMS |
| output_directory | makes an output directory appear complete or not at all |
| output_lock | lets one process at a time write an output directory |
| report_page | writes report.html beside report.json, whole or not at all |
| interrupted_update | tells and finishes an update of a report that was cut off |
| ledger | the finished layers of an unfinished run, for `--resume` |
| checkpoint_reader | reads a checkpoint tensor by tensor, and checks it |
| record_check | checks a record without decoding it |
| linear | a linear layer that multiplies by its record |
| gguf/ | a checkpoint's tensors, configuration and vocabulary as llama.cpp has them |
| load | `nearplane.load`: a directory or a name on the hub -> a model |
| transformers | the quantizer behind `from_pretrained`, `save_pretrained` and `dequantize` |
| registration | registers that quantizer once transformers is imported, adapters once peft is |
| adapters | LoRA adapters of peft on compressed layers |
| saved_again | keeps SHA256SUMS true where `save_pretrained` writes over a checkpoint |
| evaluations | appends what was measured of a checkpoint to its report.json |
| vllm/ | the plugin through which vLLM serves checkpoints |

To write another system's format, add a file here that begins with a table "theirs | ours" of its
names, and takes tensors like `CheckpointWriter.add`; `nearplane.pipeline.quantize` calls the
writer.

To let another system read our checkpoints, start from `vllm/`: it needs `checkpoint_format` for
config.json, `check_record` for the bytes, and `nearplane.codes.resident` for the product.

Nothing is imported in this file, because `import nearplane` must not import transformers.
"""
