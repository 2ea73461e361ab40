// Tiles: integers in codes of a fixed width, 16 rows and up to 256 places each, with their own width.
//
// The codes of a tile are in chunks of 64 places of two halves of 8 rows. A half of `bits` bits has words
// of 64 bytes, in which byte 8 * row + i holds fields of the places i, 8 + i, 16 + i ... Of a code the low 4 bits come
// first, if bits & 4: word w has those of places 16 w + i and 16 w + 8 + i; then 2 bits, if bits & 2: word w has those
// of places 32 w + 8 f + i, f = 0 .. 3; then 1 bit, if bits & 1: bit k is that of place 8 k + i. So 8 rows times 8
// places are one vector of bytes, to be multiplied by 8 activations.
//
// Activations are integers of 15 bits, 128 * high + low, or of 8 bits, with a scale a tile. All sums of a tile fit 32
// bits.
#pragma once
#include "layout.h"

namespace nearplane {

constexpr int kHalfRows = 8, kUnit = 8;          // rows of a half, places of a unit
constexpr int kUnits = int(kTileChunk) / kUnit;  // of a chunk
constexpr float kLargestInput = 16256;           // 127 * 128, of 15 bits
constexpr float kLargestByte = 127;              // of 8 bits

// How the codes of a tile are stored.
struct CodeForm {
  uint32_t bits;
  uint32_t levels;  // how many integers there are
};
constexpr CodeForm kCodeForms[] = {{0, 1}, {1, 2}, {2, 4}, {3, 8}, {4, 16}, {5, 32}, {6, 64}, {7, 128}};
constexpr uint32_t kForms = sizeof kCodeForms / sizeof *kCodeForms;

// A tile's byte: the number of its form, and above it whether its lowest integer is one more than usual.
INLINE const CodeForm& tile_form(uint8_t kind) { return kCodeForms[kind & 15]; }
INLINE int32_t tile_low(uint8_t kind) { return int32_t(kind >> 4) - int32_t(tile_form(kind).levels / 2); }
INLINE bool valid_kind(uint8_t kind) {
  return (kind & 15) < kForms && (kind >> 4) <= ((kind & 15) == 0 || (kind & 15) == 7 ? 0 : 1);
}
// Words of 64 bytes that a tile takes.
INLINE uint32_t tile_words(uint8_t kind, uint32_t places) { return 2 * tile_form(kind).bits * (places / kTileChunk); }

// The codes of a row of a tile: [places].
INLINE void tile_row(const uint8_t* tile, uint8_t kind, uint32_t places, int row, uint8_t* codes) {
  const CodeForm& form = tile_form(kind);
  std::memset(codes, 0, places);
  for (uint32_t c = 0; c < places / kTileChunk; c++, codes += kTileChunk) {
    const uint8_t* half = tile + size_t(2 * c + row / kHalfRows) * form.bits * 64 + 8 * (row % kHalfRows);
    int done = 0;
    for (uint32_t part = 4; part; part >>= 1) {  // 4, 2 and 1 bits: in a byte 2, 4 and 8 fields
      if (!(form.bits & part)) continue;
      // eight codes at a time, a byte each
      const int fields = 8 / int(part);
      const uint64_t mask = 0x0101010101010101u * ((1u << part) - 1);
      for (int w = 0; w < kUnits / fields; w++) {
        uint64_t word;
        std::memcpy(&word, half + 64 * w, 8);
        for (int f = 0; f < fields; f++) {
          uint64_t code;
          std::memcpy(&code, codes + kUnit * (fields * w + f), 8);
          code |= (word >> part * f & mask) << done;
          std::memcpy(codes + kUnit * (fields * w + f), &code, 8);
        }
      }
      half += 64 * part;
      done += int(part);
    }
  }
}

// Write the codes of a row, [places], to a tile that was zero.
INLINE void put_tile_row(uint8_t* tile, uint8_t kind, uint32_t places, int row, const uint8_t* codes) {
  const CodeForm& form = tile_form(kind);
  for (uint32_t p = 0; p < places; p++) {
    const int unit = int(p % kTileChunk) / kUnit, byte = 8 * (row % kHalfRows) + int(p % kUnit);
    uint8_t* half = tile + size_t(2 * (p / kTileChunk) + row / kHalfRows) * form.bits * 64;
    uint32_t code = codes[p];
    if (form.bits & 4) {
      half[64 * (unit / 2) + byte] |= uint8_t((code & 15) << 4 * (unit % 2));
      half += 256;
      code >>= 4;
    }
    if (form.bits & 2) {
      half[64 * (unit / 4) + byte] |= uint8_t((code & 3) << 2 * (unit % 4));
      half += 128;
      code >>= 2;
    }
    if (form.bits & 1) half[byte] |= uint8_t((code & 1) << unit);
  }
}

// A tile, and where it is among those of a group of 16 rows.
struct Tiles {
  const uint8_t* bytes;
  uint8_t kind;
  uint32_t places, first, number;  // its places, the first of them, and how many tiles are before it
  const uint8_t* steps;            // [16], of its rows
  uint32_t step_type;
};

// One row of activations as integers: place p is about scale[tile] * (128 * high[p] + low[p]). Of 8 bits: scale[tile] *
// high[p], and there is no low.
struct TileInputs {
  const int8_t *high = nullptr, *low = nullptr;  // [places]
  const float* scale = nullptr;                  // [tiles across]
  const int32_t* sum = nullptr;                  // [tiles across]: of a tile's integers
};

// To nearest, ties away from zero; |x| < 2^22. Without a branch, so that compilers take several at once.
INLINE int32_t nearest(float x) { return int32_t(x + bits_to_float((float_to_bits(x) & 0x80000000) | 0x3F000000)); }

// Make the integers of `count` activations, and their scale and sum; without `low` they have 8 bits. What is not finite
// makes the scale NaN, and what is too small to be scaled counts as zero.
INLINE void tile_inputs(const float* __restrict place, uint32_t count, int8_t* __restrict high, int8_t* __restrict low,
                        float* scale, int32_t* sum) {
  uint32_t bits = 0;  // of the largest size: integers, so that compilers take several at once
  for (uint32_t p = 0; p < count; p++) {
    const uint32_t size = float_to_bits(place[p]) & 0x7FFFFFFF;
    bits = size > bits ? size : bits;
  }
  const bool finite = bits < 0x7F800000;
  const float unit = finite ? bits_to_float(bits) / (low ? kLargestInput : kLargestByte) : 0;
  const float inverse = unit > 0 ? 1 / unit : 0;
  *sum = 0;
  *scale = finite ? 0 : bits_to_float(0x7FC00000);
  if (!(inverse > 0 && inverse <= 3e38f)) {  // infinite for denormal numbers
    std::memset(high, 0, count);
    if (low) std::memset(low, 0, count);
    return;
  }
  int16_t whole[kTilePlaces];
  int32_t total = 0;
  for (uint32_t p = 0; p < count; p++) {
    const int32_t integer = nearest(place[p] * inverse);
    whole[p] = int16_t(integer);
    total += integer;
  }
  if (low)
    for (uint32_t p = 0; p < count; p++) {
      const int16_t top = int16_t((whole[p] + 64) >> 7);
      high[p] = int8_t(top);
      low[p] = int8_t(whole[p] - 128 * top);
    }
  else
    for (uint32_t p = 0; p < count; p++) high[p] = int8_t(whole[p]);
  *scale = unit;
  *sum = total;
}

}  // namespace nearplane
