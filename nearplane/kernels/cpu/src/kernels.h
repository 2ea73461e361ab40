// What each instruction set implements; product.cpp and unpack.cpp put it together.
#pragma once
#include <cstdint>

#include "instruction_sets.h"
#include "layout.h"
#include "tiles.h"

namespace nearplane {

constexpr int kChunk = 32;  // pairs decoded at a time, a multiple of kRun
// Pairs that are summed by themselves, so that rounding grows with the square root of their number and not of the
// columns'; a multiple of what any window takes.
constexpr uint32_t kSummed = 480;

// A layout's code tables.
struct Book {
  const uint16_t* tables;
  int window, shift;
  INLINE explicit Book(const View& v)
      : tables(v.at<uint16_t>(v.head.table_at)), window(int(v.head.window)), shift(int(v.head.shift)) {}
  INLINE const uint16_t* table(uint32_t k) const { return tables + size_t(k) * kTable; }
  INLINE uint32_t chunk() const { return uint32_t(kChunk / pairs_taken(window) * pairs_taken(window)); }
};

// One row of activations, in the order of places and multiplied by the column steps: as sums of one or two bf16 numbers
// where they are that exactly and the kernels take it, else as floats.
struct Activations {
  int terms = 0;
  uint32_t exact_pairs = 0;      // the first so many pairs are their first bf16 numbers
  const uint32_t* bf16[2] = {};  // [pairs] each
  const float* place = nullptr;  // [2 * pairs]
  const float* raw = nullptr;    // [columns], as they came
};

// 32 streams that share one sequence of words. A lane's window is at bit `at` (below 16) of lo, then hi.
struct LaneState {
  alignas(64) uint16_t lo[kLanes], hi[kLanes], at[kLanes];
  const uint16_t* next;
};

using Tile = uint16_t[kLanes];  // a pair of columns of 16 rows, as bf16

constexpr uint32_t kLeaf = 32;  // columns at most

// Columns first .. end - 1 of `rows` rows of a sweep under way (nearplane/lattice/nearest_plane.py), all of them float,
// or double where `wide`; [columns][rows] where not said. Rounded to the nearest integer from low to high; or, where
// there are thresholds, to one of two neighbours: the upper one if the best value is further above the lower one than
// threshold[at_row + at_column + the lower one], which counts no further than span and -span - 1.
struct Leaf {
  uint32_t rows, columns, first, end, wide;
  int32_t span;
  double low, high;
  const void *target, *unit, *best, *step;  // unit is [columns][columns]; without step all steps are 1
  void* error;
  int32_t* code;
  const void* threshold;
  const int32_t *at_row, *at_column;  // [rows], [columns]
};

struct Kernels {
  const char* name;
  bool bf16;  // multiplies by bf16 activations too

  // place = a row of activations x[offset ..] in the order of places, times the column steps.
  void (*arrange)(const View& view, const void* x, size_t offset, uint32_t type, float* place);
  // place = first + rest (if there is one), rows of bf16.
  void (*split)(const float* place, size_t places, uint16_t* first, uint16_t* rest);
  // Decode `pairs` (a multiple of what a window takes) pairs of `groups` (1, 2, 4, 8) groups: out[group][kChunk][32].
  void (*decode_lanes)(LaneState* state, int groups, const Book& book, uint32_t table, int pairs, Tile* out);
  // Decode `runs` runs of a plane.
  void (*decode_plane)(const uint8_t* words, const Plane& plane, int runs, Tile* out);
  // acc[b * stride + 16 g + row] += tile[g][kChunk] . x[b], pairs first .. first + pairs - 1, for one or two groups.
  void (*multiply)(const Tile* tile, int groups, uint32_t first, int pairs, const Activations* x, int batch, float* acc,
                   int stride);
  // out[row * stride + k] = tile[k][row], pairs of bf16, for all rows and k < pairs.
  void (*transpose)(const Tile* tile, int pairs, uint32_t* out, size_t stride);
  // acc[16] += scale * (steps of entries . x)
  void (*sparse)(const Sparse& s, const uint8_t* entries, uint32_t steps, float scale, const float* x, float* acc);
  // Round `count` rows from `first_row` on.
  void (*round_leaf)(const Leaf& leaf, uint32_t first_row, uint32_t count);
  // For one row of activations, without a tile between; null where there is no such thing.
  void (*lanes_product)(const View& view, uint32_t block, const Activations& x, float* acc);
  void (*plane_product)(const View& view, const Plane& plane, uint32_t group, const Activations& x, float* acc);
  // Make a row's activations, in the order of places, integers: tile by tile.
  void (*tile_inputs)(const float* place, uint32_t count, int8_t* high, int8_t* low, float* scale, int32_t* sum);
  // acc[b * stride + row] += scale * step[row] * (the integers of a tile . x[b]), for 16 rows.
  void (*add_tile)(const Tiles& tile, const TileInputs* x, uint32_t batch, float* acc, int stride);
};

void arrange_plain(const View& view, const void* x, size_t offset, uint32_t type, float* place);
void split_plain(const float* place, size_t places, uint16_t* first, uint16_t* rest);

extern const Kernels plain_kernels;
#define DECLARE(name, flags, condition) extern const Kernels name##_kernels;
NEARPLANE_INSTRUCTION_SETS(DECLARE)
#undef DECLARE

// The kernels in use: the best that the processor has, or what `choose` said.
const Kernels& kernels();
bool choose(const char* name);
bool available(const char* name);
// The name of every instruction set that was compiled, the slowest first; null beyond the last one.
const char* name(unsigned place);

INLINE void transpose_pairs(const Tile* tile, int pairs, uint32_t* out, size_t stride) {
  for (int i = 0; i < kRows; i++)
    for (int k = 0; k < pairs; k++) std::memcpy(out + i * stride + k, tile[k] + 2 * i, 4);
}

INLINE void start_lanes(LaneState& state, const uint16_t* stream) {
  std::memcpy(state.lo, stream, sizeof state.lo);
  std::memcpy(state.hi, stream + kLanes, sizeof state.hi);
  std::memset(state.at, 0, sizeof state.at);
  state.next = stream + 2 * kLanes;
}

// The 32 values that the low 5 bits of a window may stand for, as bf16.
INLINE void plane_values(const Plane& plane, uint16_t* values) {
  for (int i = 0; i < 32; i++) values[i] = float_to_bf16(float(plane.low + plane.unit * (i & ((1 << plane.bits) - 1))));
}

// Lane i's gap, and its value, in a step of sparse entries.
INLINE uint32_t entry_gap(const Sparse& s, const uint8_t* step, int i) {
  return s.gap_bytes == 1 ? step[i] : step[2 * i] | uint32_t(step[2 * i + 1]) << 8;
}
INLINE float entry_value(const Sparse& s, const uint8_t* step, int i) {
  const uint8_t* at = step + kRows * s.gap_bytes + i * s.value_bytes();
  if (s.type == kI8) return float(int8_t(*at));
  uint32_t word = 0;
  std::memcpy(&word, at, s.value_bytes());
  return s.type == kF32 ? bits_to_float(word) : f16_to_float(uint16_t(word));
}

INLINE uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// How many of the `left` groups to take at once.
INLINE int together(uint32_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

}  // namespace nearplane
