#include <algorithm>
#include <cmath>

#include "pack.h"

namespace nearplane {

int significant_bits(float f) {
  const uint32_t fraction = float_to_bits(f) & 0x7FFFFF;
  return fraction ? 23 - __builtin_ctz(fraction) : 0;
}

float common_scale(const Matrix& m) {
  float best = 1;
  int64_t most = -1;
  for (int eighths : {8, 10, 11, 13}) {
    const float scale = m.step[0] / (float(eighths) / 8);
    bool fits = scale > 0;
    int64_t powers = 0;
    for (uint32_t c = 0; c < m.columns && fits; c++) {
      const float q = m.step[c] / scale;
      fits = std::isfinite(q) && significant_bits(q) <= 7 && q * scale == m.step[c];
      powers += significant_bits(q) == 0;
    }
    if (fits && powers > most) {
      best = scale;
      most = powers;
    }
  }
  return best;
}

void store_factors(Bytes& bytes, const Matrix& m, const Arrangement& as) {
  bytes.head().scale = 1;
  if (m.step_form == 0) {
    bytes.head().scale = m.step[0];
    return;
  }
  const float scale = common_scale(m);
  std::vector<float> factor(as.column.size(), 0), distinct;
  int bits = 0;
  for (size_t p = 0; p < factor.size(); p++) {
    if (as.column[p] < 0) continue;
    factor[p] = m.step[as.column[p]] / scale;
    bits = std::max(bits, significant_bits(factor[p]));
  }
  distinct = factor;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  uint64_t factor_at, palette_at = 0;
  const uint32_t palette = distinct.size() <= 256 ? uint32_t(distinct.size()) : 0;
  if (palette) {
    std::vector<uint8_t> index;
    for (float f : factor)
      index.push_back(uint8_t(std::lower_bound(distinct.begin(), distinct.end(), f) - distinct.begin()));
    factor_at = bytes.add(index);
    palette_at = bytes.add(distinct);
  } else {
    factor_at = bytes.add(factor);
  }
  Header& head = bytes.head();
  head.scale = scale;
  head.factor_at = factor_at;
  head.palette_at = palette_at;
  head.palette = palette;
  head.factor_bits = uint32_t(bits);
}

void store_steps(Bytes& bytes, const Matrix& m, const Arrangement& as) {
  Header& head = bytes.head();
  const uint32_t groups = divide_up(m.rows, kRows), across = head.pairs / head.group_pairs;
  std::vector<float> wide(size_t(groups) * across * kRows, 0);
  for (uint32_t i = 0; i < m.rows; i++)
    for (uint32_t g = 0; g < across; g++)
      wide[(size_t(i / kRows) * across + g) * kRows + i % kRows] = m.step[size_t(as.row[i]) * across + g];
  head.step_type = m.step_type;
  uint64_t at;
  if (m.step_type == kF32) {
    at = bytes.add(wide);
  } else {
    std::vector<uint16_t> narrow(wide.size());
    for (size_t k = 0; k < wide.size(); k++)
      narrow[k] = m.step_type == kF16 ? float_to_f16(wide[k]) : uint16_t(float_to_bits(wide[k]) >> 16);
    at = bytes.add(narrow);
  }
  bytes.head().step_at = at;
}

void store_row_steps(Bytes& bytes, const Matrix& m, const Arrangement& as) {
  if (!m.row_step) return;
  std::vector<float> distinct(m.row_step, m.row_step + m.rows);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::vector<uint8_t> index(divide_up(m.rows, kRows) * kRows, 0);
  for (uint32_t i = 0; i < m.rows; i++)
    index[i] = uint8_t(std::lower_bound(distinct.begin(), distinct.end(), m.row_step[as.row[i]]) - distinct.begin());
  const uint64_t row_step_at = bytes.add(index), row_palette_at = bytes.add(distinct);
  bytes.head().row_step_at = row_step_at;
  bytes.head().row_palette_at = row_palette_at;
  bytes.head().row_palette = uint32_t(distinct.size());
}

void store_rows(Bytes& bytes, const Arrangement& as, uint32_t rows) {
  std::vector<uint16_t> row(divide_up(rows, kRows) * kRows, 0);
  bool moved = false;
  for (uint32_t i = 0; i < rows; i++) {
    row[i] = uint16_t(as.row[i] % kRowWindow);
    moved |= as.row[i] != i;
  }
  if (!moved) return;
  const uint64_t at = bytes.add(row);
  bytes.head().row_at = at;
}

}  // namespace nearplane
