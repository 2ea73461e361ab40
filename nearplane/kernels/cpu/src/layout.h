// The bytes that a layer holds while it is used: made at load time, private to this library.
//
// y[row] = row step * scale * (codes in lanes + planes + tiles + escapes) . (x * column step) + outliers . x
//
// A layout has lanes and planes, which is compact; or it has tiles, which is fast.
//
// Rows are taken in groups of 16, groups in blocks of 8. A register of 32 lanes of 16 bits holds 16 rows:
// lane 2i and lane 2i+1 are row i's members of a pair of columns. "Place" is a column's position in the order of pairs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// For all functions of headers that files for an instruction set include: no such file may define a function that
// others call too. Of a function that several files define the linker keeps one, which then runs on every processor.
#define INLINE inline __attribute__((always_inline))

namespace nearplane {

constexpr int kRows = 16, kLanes = 32, kGroups = 8, kBlockRows = kRows * kGroups;
constexpr int kTable = 64;  // entries, for windows of up to 6 bits
constexpr int kRun = 16;    // pairs that a plane packs together
constexpr int kPlanes = 3;
constexpr uint32_t kTileChunk = 64;       // places; a tile has one or more chunks
constexpr uint32_t kTilePlaces = 256;     // of a tile, at most
constexpr uint32_t kRowWindow = 1 << 15;  // rows are reordered within this many
constexpr uint16_t kNoColumn = 0xFFFF;
constexpr size_t kSlack = 512;  // readable bytes behind the last section

enum Type : uint32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3 };

// Codes of `bits` bits, each worth low + unit * code.
struct Plane {
  uint32_t bits;
  int32_t low, unit;
  uint32_t spare;
  uint64_t at;
};

// Entries of 16 rows side by side: a step of a group is 16 gaps and 16 values.
struct Sparse {
  uint32_t type;          // of values: float32, float16 or int8
  uint16_t gap_bytes;     // 1 or 2
  uint16_t places;        // whether gaps are of places, or of columns
  uint64_t start_at, at;  // uint32 [groups + 1]: steps, and the entries; 0: there are none

  INLINE uint32_t value_bytes() const { return type == kF32 ? 4 : type == kI8 ? 1 : 2; }
  INLINE uint32_t step_bytes() const { return kRows * (gap_bytes + value_bytes()); }
};

// Offsets count bytes from the header's start; 0 stands for an absent section.
struct Header {
  char magic[4];
  uint32_t version;
  uint64_t bytes, stored_bytes;  // of the layout, and of the record it was made from
  uint32_t rows, columns;
  uint32_t pairs;                       // of places, padding included
  uint32_t group_columns, group_pairs;  // one group of all columns, or groups with a step a row
  uint32_t planes, segments, tables;
  uint32_t code_tag, step_form;  // of the record it was made from
  uint32_t step_type, palette;   // palette: distinct column steps, 0 for a float a place
  uint32_t shift;                // tables hold integers times 2^shift
  uint32_t window;               // longest code word: 5 or 6 bits
  uint32_t coder;                // what the record's encoder was told, for Python
  float scale;
  uint32_t factor_bits;     // significant bits of the column steps beyond the first
  uint32_t exact_pairs;     // the first so many pairs have steps that are powers of two
  uint32_t row_palette;     // distinct row steps, 0 where all are 1
  uint64_t row_at;          // uint16 [groups * 16]: row in its window of kRowWindow
  uint64_t column_at;       // uint16 [2 * pairs]: column, or kNoColumn
  uint64_t factor_at;       // uint8 or float [2 * pairs]: column steps
  uint64_t palette_at;      // float [palette]
  uint64_t row_step_at;     // uint8 [groups * 16]
  uint64_t row_palette_at;  // float [row_palette]
  uint64_t step_at;         // [groups][column groups][16] of step_type
  uint64_t segment_at;      // uint32 [segments + 1]: pairs where tables change
  uint64_t cell_at;         // uint8 [blocks][segments]: table
  uint64_t table_at;        // uint16 [tables][64]: bf16 value | length in the low 4 bits
  uint64_t start_at;        // uint32 [groups + 1]: 16-bit words in the stream
  uint64_t stream_at, stream_words;
  Plane plane[kPlanes];
  Sparse escape, outlier;
  uint32_t tile_places;    // of a tile, the last one of a group of columns may have fewer; 0: there are no tiles
  uint32_t input_bits;     // of the integers that activations are with tiles: 15 or 8
  uint64_t tile_kind_at;   // uint8 [groups][tiles across]: see tiles.h
  uint64_t tile_start_at;  // uint32 [groups + 1]: 64-byte words
  uint64_t tile_at;
};

// Pairs that 16 bits hold whatever their words are.
INLINE int pairs_taken(uint32_t window) { return int(16 / window); }

INLINE uint32_t divide_up(uint64_t a, uint64_t b) { return uint32_t((a + b - 1) / b); }

INLINE float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
INLINE float bf16_to_float(uint16_t b) { return bits_to_float(uint32_t(b) << 16); }

// To nearest, ties to even; a NaN stays one.
INLINE uint16_t float_to_bf16(float f) {
  const uint32_t u = float_to_bits(f), nan = u >> 16 | 64, rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
  return uint16_t(int32_t(u & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
}
float f16_to_float(uint16_t h);
uint16_t float_to_f16(float f);

// A header with typed pointers into its sections.
struct View {
  const uint8_t* base;
  const Header& head;
  INLINE explicit View(const void* bytes)
      : base(static_cast<const uint8_t*>(bytes)), head(*static_cast<const Header*>(bytes)) {}
  template <class T>
  INLINE const T* at(uint64_t offset) const {
    return offset ? reinterpret_cast<const T*>(base + offset) : nullptr;
  }
  INLINE uint32_t groups() const { return divide_up(head.rows, kRows); }
  INLINE uint32_t blocks() const { return divide_up(head.rows, kBlockRows); }
  INLINE uint32_t column_groups() const { return head.pairs / head.group_pairs; }
  INLINE uint64_t plane_group_bytes(const Plane& p) const { return uint64_t(head.pairs / kRun) * p.bits * 64; }
  INLINE uint64_t step_bytes() const { return head.step_type == kF32 ? 4 : 2; }
  // Tiles of a group of columns, and of all columns.
  INLINE uint32_t tiles_of_group() const { return divide_up(2 * head.group_pairs, head.tile_places); }
  INLINE uint32_t tiles_across() const { return tiles_of_group() * column_groups(); }
  INLINE uint32_t places_of(uint32_t t) const {
    const uint32_t left = 2 * head.group_pairs - t % tiles_of_group() * head.tile_places;
    return left < head.tile_places ? left : head.tile_places;
  }
  // Call use(number, first place, places) for every tile across.
  template <class Use>
  INLINE void each_tile(const Use& use) const {
    const uint32_t width = 2 * head.group_pairs;
    uint32_t number = 0;
    for (uint32_t group = 0; group < 2 * head.pairs; group += width)
      for (uint32_t at = 0; at < width; at += head.tile_places)
        use(number++, group + at, width - at < head.tile_places ? width - at : head.tile_places);
  }
  // The matrix's row behind row i of the layout.
  INLINE uint32_t row(uint32_t i) const {
    const uint16_t* r = at<uint16_t>(head.row_at);
    return r ? i / kRowWindow * kRowWindow + r[i] : i;
  }
  // The matrix's column at a place; head.columns or more for padding.
  INLINE uint32_t column(uint32_t place) const {
    if (const uint16_t* c = at<uint16_t>(head.column_at)) return c[place] == kNoColumn ? head.columns : c[place];
    uint32_t width = 2 * head.group_pairs, group = place / width, inside = place % width;
    return inside < head.group_columns ? group * head.group_columns + inside : head.columns;
  }
  // The step of row i of the layout, beside those of columns.
  INLINE float row_step(uint32_t i) const { return at<float>(head.row_palette_at)[at<uint8_t>(head.row_step_at)[i]]; }
  INLINE float factor(uint32_t place) const {
    if (!head.factor_at) return 1;
    if (!head.palette) return at<float>(head.factor_at)[place];
    return at<float>(head.palette_at)[at<uint8_t>(head.factor_at)[place]];
  }
};

}  // namespace nearplane
