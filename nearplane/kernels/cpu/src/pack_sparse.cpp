#include <algorithm>
#include <cmath>

#include "pack.h"

namespace nearplane {

namespace {

struct Step {
  uint32_t gap;
  float value;
};

// Gaps of up to `longest` from the entry before; longer ones pass through entries of value 0. An int8 holds a large
// integer in parts.
std::vector<Step> steps_of(const std::vector<Entry>& entries, uint32_t type, uint32_t longest) {
  std::vector<Step> steps;
  uint32_t at = 0;
  for (const Entry& e : entries) {
    for (; e.place - at > longest; at += longest) steps.push_back({longest, 0});
    float rest = e.value;
    do {
      const float part = type == kI8 ? std::clamp(rest, -127.0f, 127.0f) : rest;
      steps.push_back({e.place - at, part});
      at = e.place;
      rest -= part;
    } while (type == kI8 && rest != 0);
  }
  return steps;
}

// The smallest type that holds all values without too many parts.
uint32_t type_of(const Rows& rows) {
  bool half = true, byte = true;
  for (const auto& row : rows)
    for (const Entry& e : row) {
      half &= f16_to_float(float_to_f16(e.value)) == e.value;
      byte &= std::abs(e.value) <= 254 && e.value == std::floor(e.value);
    }
  return byte ? kI8 : half ? kF16 : kF32;
}

void append(std::vector<uint8_t>& out, uint32_t word, uint32_t bytes) {
  for (uint32_t b = 0; b < bytes; b++) out.push_back(uint8_t(word >> 8 * b));
}

uint32_t word_of(float value, uint32_t type) {
  return type == kI8 ? uint32_t(int32_t(value)) : type == kF32 ? float_to_bits(value) : float_to_f16(value);
}

struct Packed {
  std::vector<uint32_t> start;
  std::vector<uint8_t> bytes;
};

Packed pack_steps(const Rows& rows, const Sparse& s) {
  const size_t groups = divide_up(rows.size(), kRows);
  Packed out{std::vector<uint32_t>(groups + 1, 0), {}};
  for (size_t g = 0; g < groups; g++) {
    std::vector<std::vector<Step>> lanes(kRows);
    size_t longest = 0;
    for (int i = 0; i < kRows && g * kRows + i < rows.size(); i++) {
      lanes[i] = steps_of(rows[g * kRows + i], s.type, s.gap_bytes == 1 ? 255 : 65535);
      longest = std::max(longest, lanes[i].size());
    }
    for (size_t k = 0; k < longest; k++) {
      for (auto& lane : lanes) append(out.bytes, k < lane.size() ? lane[k].gap : 0, s.gap_bytes);
      for (auto& lane : lanes) append(out.bytes, word_of(k < lane.size() ? lane[k].value : 0, s.type), s.value_bytes());
    }
    out.start[g + 1] = uint32_t(out.start[g] + longest);
  }
  return out;
}

}  // namespace

void correct(std::vector<Entry>& row, uint32_t place, int64_t difference) {
  const int64_t low = std::llabs(difference) < 1 << 24 ? difference : difference % 65536;
  if (low) row.push_back({place, float(low)});
  if (low != difference) row.push_back({place, float(difference - low)});
}

Sparse pack_sparse(Bytes& bytes, const Rows& rows, bool places) {
  Sparse s{type_of(rows), 1, places, 0, 0};
  Packed best = pack_steps(rows, s);
  if (best.bytes.empty()) return s;
  s.gap_bytes = 2;
  Packed wide = pack_steps(rows, s);
  if (wide.bytes.size() <= best.bytes.size())
    best = std::move(wide);
  else
    s.gap_bytes = 1;
  s.start_at = bytes.add(best.start);
  s.at = bytes.add(best.bytes);
  return s;
}

void store_outliers(Bytes& bytes, const Matrix& m, const Arrangement& as) {
  bytes.head().outlier = Sparse{kF16, 1, 0, 0, 0};
  if (!m.outlier_start) return;
  Rows rows(m.rows);
  for (uint32_t i = 0; i < m.rows; i++)
    for (int32_t k = m.outlier_start[as.row[i]]; k < m.outlier_start[as.row[i] + 1]; k++)
      rows[i].push_back({uint32_t(m.outlier_column[k]), f16_to_float(m.outlier_value[k])});
  const Sparse sparse = pack_sparse(bytes, rows, false);
  bytes.head().outlier = sparse;
}

}  // namespace nearplane
