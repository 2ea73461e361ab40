#include "fused.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "product.h"

namespace nearplane {

namespace {

constexpr uint32_t kGated = 2048;  // numbers of a gate that one thread takes at a time
constexpr uint32_t kSums = 16;     // partial sums, so that a compiler may use registers of so many numbers

// Numbers of a type as floats, behind which there may be anything up to a multiple of kSums.
class Floats {
 public:
  Floats(const void* from, size_t at, uint32_t count, uint32_t type) : numbers(static_cast<const float*>(from) + at) {
    if (type == kF32) return;
    held.resize(count);
    load_row(from, at, count, type, held.data());
    numbers = held.data();
  }
  float operator[](uint32_t i) const { return numbers[i]; }

 private:
  std::vector<float> held;
  const float* numbers;
};

// Memory for one vector of a type, kept between calls; `nth` tells a caller's vectors apart.
void* vector_of(uint32_t nth, size_t count) {
  static thread_local std::vector<float> memory[5];
  if (memory[nth].size() < count) memory[nth].resize(count);
  return memory[nth].data();
}

float mean_square(const Floats& x, uint32_t count) {
  float sum[kSums] = {};
  uint32_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (uint32_t j = 0; j < kSums; j++) sum[j] += x[i + j] * x[i + j];
  for (; i < count; i++) sum[0] += x[i] * x[i];
  double all = 0;
  for (float part : sum) all += part;
  return float(all / count);
}

// to = plus (if there is one) + norm(from), each at element `at`.
void normalize(const Norm& norm, const void* from, size_t at, uint32_t count, uint32_t type, const void* plus,
               void* to) {
  const Floats x(from, at, count, type);
  std::vector<float> result(count, 0.0f);
  if (plus) {
    const Floats added(plus, at, count, type);
    for (uint32_t i = 0; i < count; i++) result[i] = added[i];
  }
  if (norm.weight) {
    const Floats weight(norm.weight, 0, count, type);
    const float factor = 1 / std::sqrt(mean_square(x, count) + norm.eps);
    for (uint32_t i = 0; i < count; i++) result[i] += x[i] * factor * (norm.offset + weight[i]);
  } else {
    for (uint32_t i = 0; i < count; i++) result[i] += x[i];
  }
  store_row(to, at, result.data(), count, type);
}

// Norm, then rotation, of every head in place.
void turn(const DecoderBlock& block, const Norm& norm, uint32_t heads, const Floats& cosine, const Floats& sine,
          void* x) {
  const uint32_t half = block.rotated / 2, type = block.type;
  std::vector<float> turned(block.rotated);
  for (uint32_t h = 0; h < heads; h++) {
    const size_t at = size_t(h) * block.head_size;
    if (norm.weight) normalize(norm, x, at, block.head_size, type, nullptr, x);
    const Floats head(x, at, block.rotated, type);
    for (uint32_t i = 0; i < half; i++) {
      turned[i] = head[i] * cosine[i] - head[half + i] * sine[i];
      turned[half + i] = head[half + i] * cosine[half + i] + head[i] * sine[half + i];
    }
    store_row(x, at, turned.data(), block.rotated, type);
  }
}

// e^x within 2e-7 of it, without a branch: 2^n times a polynomial in the rest.
INLINE float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float shifted = x * 1.4426950408889634f + 12582912.0f;  // 1.5 * 2^23: the low bits are n
  const float n = shifted - 12582912.0f, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1) * bits_to_float((float_to_bits(shifted) + 127) << 23);
}

// gate = gated(gate) * up, for numbers first .. last - 1
void gate_part(const DecoderBlock& block, uint32_t first, uint32_t last, void* gate, const void* up) {
  const uint32_t count = last - first;
  const Floats g(gate, first, count, block.type), u(up, first, count, block.type);
  std::vector<float> result(count);
  float* out = result.data();
  if (block.gate_kind == kSilu) {
    for (uint32_t i = 0; i < count; i++) out[i] = g[i] / (1 + exponential(-g[i])) * u[i];
  } else {
    // 0.5 (1 + tanh(a)) = 1 / (1 + exp(-2 a))
    for (uint32_t i = 0; i < count; i++)
      out[i] = g[i] / (1 + exponential(-1.5957691216057308f * (g[i] + 0.044715f * g[i] * g[i] * g[i]))) * u[i];
  }
  store_row(gate, first, out, count, block.type);
}

void multiply_gate(const DecoderBlock& block, void* gate, const void* up) {
  parallel_for(divide_up(block.feed_forward, kGated), [&](uint32_t n) {
    gate_part(block, n * kGated, std::min(block.feed_forward, (n + 1) * kGated), gate, up);
  });
}

}  // namespace

void attention_inputs(const DecoderBlock& block, const void* x, const void* cosine, const void* sine, void* q, void* k,
                      void* v) {
  void* normed = vector_of(0, block.hidden);
  normalize(block.before_attention, x, 0, block.hidden, block.type, nullptr, normed);
  const Product three[] = {{block.queries.layout, block.queries.bias, q},
                           {block.keys.layout, block.keys.bias, k},
                           {block.values.layout, block.values.bias, v}};
  products(three, 3, normed, 1, block.type);
  const Floats c(cosine, 0, block.rotated, block.type), s(sine, 0, block.rotated, block.type);
  turn(block, block.of_queries, block.heads, c, s, q);
  turn(block, block.of_keys, block.kv_heads, c, s, k);
}

void after_attention(const DecoderBlock& block, const void* x, const void* attended, void* y) {
  const uint32_t type = block.type;
  void *given = vector_of(0, block.hidden), *middle = vector_of(1, block.hidden), *normed = vector_of(2, block.hidden);
  void *gate = vector_of(3, block.feed_forward), *up = vector_of(4, block.feed_forward);
  const Product output{block.output.layout, block.output.bias, given};
  products(&output, 1, attended, 1, type);
  normalize(block.after_attention, given, 0, block.hidden, type, x, middle);
  normalize(block.before_mlp, middle, 0, block.hidden, type, nullptr, normed);
  const Product both[] = {{block.gate.layout, block.gate.bias, gate}, {block.up.layout, block.up.bias, up}};
  products(both, 2, normed, 1, type);
  multiply_gate(block, gate, up);
  const Product down{block.down.layout, block.down.bias, given};
  products(&down, 1, gate, 1, type);
  normalize(block.after_mlp, given, 0, block.hidden, type, middle, y);
}

}  // namespace nearplane
