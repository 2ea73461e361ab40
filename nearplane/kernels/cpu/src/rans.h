// Streams of asymmetric numeral systems, as docs/formats/rans.md has them.
#pragma once
#include <cstdint>

namespace nearplane {

// What makes streams readable. Frequencies of a list are positive and add up to 2^24: the caller has checked.
struct RansBands {
  uint32_t rows, columns, bands, row_classes, column_classes, tables, symbols;
  const uint32_t* const* stream;    // [bands]
  const uint64_t* words;            // [bands]
  const int64_t* row_frequency;     // [row_classes]
  const int64_t* column_frequency;  // [column_classes]
  const int64_t* table;             // [row_classes + column_classes - 1]: each context's table
  const int64_t* frequency;         // [tables][symbols]
};

// symbol [rows][columns]; false unless every stream ends as it began.
bool decode_rans(const RansBands& bands, int32_t* symbol);

}  // namespace nearplane
