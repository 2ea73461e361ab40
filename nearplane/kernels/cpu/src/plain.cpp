// The kernels in plain C++: what the others are tested against.
#include <algorithm>

#include "kernels.h"
#include "product.h"

namespace nearplane {

float f16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7F800000 | fraction << 13);
  if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -tiny : tiny;
}

uint16_t float_to_f16(float f) {
  const uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000, size = u & 0x7FFFFFFF;
  if (size > 0x7F800000) return uint16_t(sign | 0x7E00);
  if (size >= 0x477FF000) return uint16_t(sign | 0x7C00);  // rounds to 2^16 or more
  if (size < 0x38800000)                                   // below 2^-14: add 0.5, whose last place is 2^-24
    return uint16_t(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3F000000));
  return uint16_t(sign | (size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13);
}

namespace {

template <uint32_t Type>
float get(const void* from, size_t i) {
  if (Type == kF32) return static_cast<const float*>(from)[i];
  const uint16_t half = static_cast<const uint16_t*>(from)[i];
  return Type == kF16 ? f16_to_float(half) : bf16_to_float(half);
}

// A row of activations in the order of places.
template <uint32_t Type>
void arrange_type(const View& view, const void* x, size_t offset, float* place) {
  const Header& head = view.head;
  const uint32_t places = 2 * head.pairs;
  if (const uint16_t* column = view.at<uint16_t>(head.column_at)) {
    for (uint32_t p = 0; p < places; p++) place[p] = column[p] == kNoColumn ? 0 : get<Type>(x, offset + column[p]);
    return;
  }
  const uint32_t width = 2 * head.group_pairs;
  for (uint32_t at = 0, column = 0; at < places; at += width) {
    const uint32_t count = std::min(head.group_columns, head.columns - column);
    for (uint32_t p = 0; p < count; p++) place[at + p] = get<Type>(x, offset + column + p);
    for (uint32_t p = count; p < width; p++) place[at + p] = 0;
    column += count;
  }
}

}  // namespace

void arrange_plain(const View& view, const void* x, size_t offset, uint32_t type, float* place) {
  if (type == kF32)
    arrange_type<kF32>(view, x, offset, place);
  else if (type == kF16)
    arrange_type<kF16>(view, x, offset, place);
  else
    arrange_type<kBF16>(view, x, offset, place);
  const Header& head = view.head;
  if (!head.factor_at) return;
  const uint32_t places = 2 * head.pairs;
  const uint8_t* index = view.at<uint8_t>(head.factor_at);
  const float* factor = view.at<float>(head.factor_at);
  if (const float* palette = view.at<float>(head.palette_at))
    for (uint32_t p = 0; p < places; p++) place[p] *= palette[index[p]];
  else
    for (uint32_t p = 0; p < places; p++) place[p] *= factor[p];
}

// place = the sum of rows of bf16; what is not finite stays whole in the first.
void split_plain(const float* place, size_t places, uint16_t* first, uint16_t* rest) {
  for (size_t p = 0; p < places; p++) {
    first[p] = float_to_bf16(place[p]);
    if (rest) rest[p] = (first[p] & 0x7F80) == 0x7F80 ? 0 : float_to_bf16(place[p] - bf16_to_float(first[p]));
  }
}

namespace {

void decode_lanes(LaneState* state, int groups, const Book& book, uint32_t number, int pairs, Tile* out) {
  const uint16_t* table = book.table(number);
  const int step = pairs_taken(book.window), mask = (1 << book.window) - 1;
  for (int g = 0; g < groups; g++, out += kChunk) {
    LaneState& s = state[g];
    for (int j = 0; j < pairs; j += step)
      for (int lane = 0; lane < kLanes; lane++) {
        uint32_t window = (s.lo[lane] | uint32_t(s.hi[lane]) << 16) >> s.at[lane] & 0xFFFF;
        for (int k = 0; k < step; k++) {
          const uint16_t entry = table[window & mask];
          out[j + k][lane] = entry & 0xFFF0;
          window >>= entry & 15;
          s.at[lane] += entry & 15;
        }
        if (s.at[lane] < 16) continue;
        s.at[lane] -= 16;
        s.lo[lane] = s.hi[lane];
        s.hi[lane] = *s.next++;
      }
  }
}

void decode_plane(const uint8_t* words, const Plane& plane, int runs, Tile* out) {
  uint16_t values[32];
  plane_values(plane, values);
  const uint32_t bits = plane.bits, mask = (1u << bits) - 1;
  for (int run = 0; run < runs; run++, out += kRun) {
    uint16_t word[4 * kLanes];
    std::memcpy(word, words + size_t(run) * bits * 64, bits * 64);
    for (int k = 0; k < kRun; k++)
      for (int lane = 0; lane < kLanes; lane++) {
        uint32_t field;
        if (bits != 3)
          field = word[k * bits / 16 * kLanes + lane] >> k * bits % 16;
        else if (k < 15)
          field = word[k / 5 * kLanes + lane] >> 3 * (k % 5);
        else
          field = word[lane] >> 15 | word[kLanes + lane] >> 15 << 1 | word[2 * kLanes + lane] >> 15 << 2;
        out[k][lane] = values[field & mask];
      }
  }
}

void multiply(const Tile* tile, int groups, uint32_t first, int pairs, const Activations* x, int batch, float* acc,
              int stride) {
  for (int g = 0; g < groups; g++, tile += kChunk, acc += kRows)
    for (int b = 0; b < batch; b++) {
      float sum[kRows] = {};
      for (int j = 0; j < pairs; j++) {
        const float* pair = x[b].place + 2 * (first + j);
        for (int i = 0; i < kRows; i++)
          sum[i] += bf16_to_float(tile[j][2 * i]) * pair[0] + bf16_to_float(tile[j][2 * i + 1]) * pair[1];
      }
      for (int i = 0; i < kRows; i++) acc[b * stride + i] += sum[i];
    }
}

void sparse(const Sparse& s, const uint8_t* entries, uint32_t steps, float scale, const float* x, float* acc) {
  uint32_t column[kRows] = {};
  float sum[kRows] = {};
  for (uint32_t k = 0; k < steps; k++, entries += s.step_bytes())
    for (int i = 0; i < kRows; i++) {
      column[i] += entry_gap(s, entries, i);
      sum[i] += entry_value(s, entries, i) * x[column[i]];
    }
  for (int i = 0; i < kRows; i++) acc[i] += scale * sum[i];
}

void tile_integers(const float* place, uint32_t count, int8_t* high, int8_t* low, float* scale, int32_t* sum) {
  tile_inputs(place, count, high, low, scale, sum);
}

void add_tile(const Tiles& tile, const TileInputs* x, uint32_t batch, float* acc, int stride) {
  uint8_t codes[kTilePlaces];
  const int32_t low = tile_low(tile.kind);
  for (int i = 0; i < kRows; i++) {
    tile_row(tile.bytes, tile.kind, tile.places, i, codes);
    for (uint32_t b = 0; b < batch; b++) {
      int32_t sum = low * x[b].sum[tile.number];
      for (uint32_t p = 0, at = tile.first; p < tile.places; p++, at++)
        sum += codes[p] * (x[b].low ? 128 * x[b].high[at] + x[b].low[at] : x[b].high[at]);
      acc[b * stride + i] += x[b].scale[tile.number] * load(tile.steps, i, tile.step_type) * float(sum);
    }
  }
}

void transpose(const Tile* tile, int pairs, uint32_t* out, size_t stride) { transpose_pairs(tile, pairs, out, stride); }

#define NEARPLANE_FMA 0
#include "leaf.inc"

}  // namespace

constexpr Kernels plain_kernels{"plain",   false,  arrange_plain, split_plain, decode_lanes, decode_plane,  multiply,
                                transpose, sparse, round_leaf,    nullptr,     nullptr,      tile_integers, add_tile};

}  // namespace nearplane
