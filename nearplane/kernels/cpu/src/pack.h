// Laying a matrix out: from integers, steps and outliers to the bytes of layout.h.
#pragma once
#include <cstdint>
#include <vector>

#include "layout.h"

namespace nearplane {

// What a record holds. Steps are one, one a column, or one a row and group, as step_form says.
struct Matrix {
  uint32_t rows, columns, group_size, step_form, code_tag, step_type;
  const int32_t* code;
  const float* step;
  const float* row_step;         // [rows], or null; only beside one step a column, and no outliers
  const int32_t* outlier_start;  // [rows + 1], or null
  const int32_t* outlier_column;
  const uint16_t* outlier_value;  // float16
  uint64_t stored_bytes;          // of the record
  uint32_t coder;
  uint32_t input_bits;  // 0, or to lay it out in tiles, with activations as integers of 15 or 8 bits
};

struct Entry {
  uint32_t place;
  float value;
};
using Rows = std::vector<std::vector<Entry>>;  // by row of the layout, places rising

// A header and the sections written so far.
class Bytes {
 public:
  Bytes() : data_(sizeof(Header), 0) {}
  Header& head() { return *reinterpret_cast<Header*>(data_.data()); }
  uint64_t add(const void* from, size_t size) {
    data_.resize((data_.size() + 63) / 64 * 64, 0);
    const uint64_t at = data_.size();
    data_.resize(at + size, 0);
    if (from) std::memcpy(data_.data() + at, from, size);
    return at;
  }
  template <class T>
  uint64_t add(const std::vector<T>& from) {
    return add(from.data(), from.size() * sizeof(T));
  }
  uint8_t* at(uint64_t offset) { return data_.data() + offset; }
  std::vector<uint8_t> finish() {
    add(nullptr, 0);
    head().bytes = data_.size() + kSlack;
    data_.resize(head().bytes, 0);
    return std::move(data_);
  }

 private:
  std::vector<uint8_t> data_;
};

// How rows and columns are arranged: row i of the layout is row row[i], place p is column column[p] (-1: padding).
struct Arrangement {
  std::vector<uint32_t> row;
  std::vector<int64_t> column;
};

// What a clipped integer lacks, in parts that are each exact in a float.
void correct(std::vector<Entry>& row, uint32_t place, int64_t difference);
// Sums of magnitudes of rows and of columns.
void magnitudes(const Matrix& m, int shift, std::vector<double>& row, std::vector<double>& column);

Sparse pack_sparse(Bytes& bytes, const Rows& rows, bool places);
// Pack bits `shift` and up, `bits` of them, of code - origin; each is worth low + unit * what stands there.
Plane pack_plane(Bytes& bytes, const Matrix& matrix, const Arrangement& as, uint32_t bits, int shift, int32_t low,
                 int32_t unit, int32_t origin);
void pack_lanes(Bytes& bytes, const Matrix& matrix);
// Whether tiles can hold a matrix: with steps of a row and group, all integers must fit.
bool fits_tiles(const Matrix& matrix);
void pack_tiles(Bytes& bytes, const Matrix& matrix);
void pack_planes(Bytes& bytes, const Matrix& matrix);

// Return the bytes, or nothing for a matrix that these kernels do not serve.
std::vector<uint8_t> pack(const Matrix& matrix);

// The least integer, and the bits of the largest distance from it.
struct Range {
  int32_t low;
  int bits;
};
Range range(const Matrix& matrix);

// One factor for all steps under which they have few bits and most are powers of two, if there is one; else 1.
float common_scale(const Matrix& matrix);
// Significant bits of a number beyond the first.
int significant_bits(float f);

void store_rows(Bytes& bytes, const Arrangement& as, uint32_t rows);
void store_row_steps(Bytes& bytes, const Matrix& matrix, const Arrangement& as);
void store_steps(Bytes& bytes, const Matrix& matrix, const Arrangement& as);    // a row and group
void store_factors(Bytes& bytes, const Matrix& matrix, const Arrangement& as);  // one, or one a column
void store_outliers(Bytes& bytes, const Matrix& matrix, const Arrangement& as);

}  // namespace nearplane
