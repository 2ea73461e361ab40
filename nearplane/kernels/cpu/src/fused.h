// What stands between the products of a decoder block, for one token: norms, rotation, gate, residual sums.
#pragma once
#include <cstdint>

namespace nearplane {

// y = x / sqrt(mean(x^2) + eps) * (offset + weight), or y = x where there is no weight.
struct Norm {
  const void* weight;
  float eps, offset;
};

struct Linear {
  const void* layout;
  const void* bias;  // or null
};

enum Gate : uint32_t { kSilu = 0, kGeluTanh = 1 };

// A block of the Llama kind; weights of norms, biases and all activations are of one type.
struct DecoderBlock {
  uint32_t type, hidden, heads, kv_heads, head_size, rotated, feed_forward, gate_kind;
  Norm before_attention, of_queries, of_keys, after_attention, before_mlp, after_mlp;
  Linear queries, keys, values, output, gate, up, down;
};

// q [heads][head_size], k and v [kv_heads][head_size] of x [hidden]; the first `rotated` numbers of a head are turned
// by cosine and sine [rotated], which hold the angles of one half twice.
void attention_inputs(const DecoderBlock& block, const void* x, const void* cosine, const void* sine, void* q, void* k,
                      void* v);

// y [hidden] = the block's output, from its input x and what attention gave [heads][head_size].
void after_attention(const DecoderBlock& block, const void* x, const void* attended, void* y);

}  // namespace nearplane
