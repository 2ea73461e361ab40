"""The counted bytes are the sizes of the files."""

import json

from nearplane.evaluate.bits import count_bytes, is_checkpoint


def test_every_byte_is_accounted_for(checkpoint):
    bits = count_bytes(checkpoint)
    weights = checkpoint / "model.safetensors"
    assert bits.weight_files == weights.stat().st_size
    assert bits.all_files == sum(p.stat().st_size for p in checkpoint.iterdir())
    header = int.from_bytes(weights.read_bytes()[:8], "little") + 8
    uncompressed = sum(size for _, size in bits.uncompressed.values())
    assert header + uncompressed + sum(la.record_bytes for la in bits.layers) == bits.weight_files
    assert bits.bpw_of_files == 8 * bits.weight_files / bits.numbers


def test_it_agrees_with_the_report(checkpoint):
    report = json.loads((checkpoint / "report.json").read_text())
    bits = count_bytes(checkpoint)
    assert round(bits.bpw, 4) == round(report["bits"]["bpw"], 4)
    assert bits.weights == report["bits"]["quantized_weights"]
    for layer in bits.layers:
        rest = layer.record_bytes - layer.code_bytes - layer.step_bytes - layer.outlier_bytes
        assert rest == 36  # header and check sum
    assert bits.bpw <= 5


def test_blocks_are_counted_together(checkpoint):
    assert "model.layers.*.input_layernorm.weight" in count_bytes(checkpoint).uncompressed


def test_only_checkpoints_are_checkpoints(checkpoint, model_dir):
    assert is_checkpoint(checkpoint)
    assert not is_checkpoint(model_dir) and not is_checkpoint("no-such-directory")
