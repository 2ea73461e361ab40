#include <algorithm>
#include <cmath>
#include <numeric>

#include "pack.h"
#include "parallel.h"

namespace nearplane {

// Pack bits `shift_from` .. of (code - low): element k of a run is at bits k*w of its lane, but for 3 bits,
// where word j holds elements 5j .. 5j+4 and bit j of element 15 on top.
Plane pack_plane(Bytes& bytes, const Matrix& m, const Arrangement& as, uint32_t bits, int shift, int32_t low,
                 int32_t unit, int32_t origin) {
  const Header head = bytes.head();
  const uint32_t groups = divide_up(m.rows, kRows), runs = head.pairs / kRun, mask = (1u << bits) - 1;
  const uint64_t group_bytes = uint64_t(runs) * bits * 64;
  Plane plane{bits, low, unit, 0, bytes.add(nullptr, group_bytes * groups)};
  auto* out = reinterpret_cast<uint16_t*>(bytes.at(plane.at));
  parallel_for(groups, [&](uint32_t g) {
    for (uint32_t run = 0; run < runs; run++) {
      uint16_t* words = out + (uint64_t(g) * runs + run) * bits * kLanes;
      for (int lane = 0; lane < kLanes; lane++) {
        const uint32_t i = g * kRows + lane / 2;
        for (int k = 0; k < kRun; k++) {
          const int64_t column = as.column[2 * (run * kRun + k) + (lane & 1)];
          if (i >= m.rows || column < 0) continue;
          const uint32_t field = uint32_t(m.code[uint64_t(as.row[i]) * m.columns + column] - origin) >> shift & mask;
          if (bits != 3)
            words[k * bits / 16 * kLanes + lane] |= uint16_t(field << k * bits % 16);
          else if (k < 15)
            words[k / 5 * kLanes + lane] |= uint16_t(field << 3 * (k % 5));
          else
            for (int j = 0; j < 3; j++) words[j * kLanes + lane] |= uint16_t((field >> j & 1) << 15);
        }
      }
    }
  });
  return plane;
}

namespace {

// Rows with about as many outliers lie side by side.
Arrangement arrange(const Matrix& m, const Header& head) {
  Arrangement as;
  as.row.resize(m.rows);
  std::iota(as.row.begin(), as.row.end(), 0);
  if (m.outlier_start) {
    auto count = [&](uint32_t r) { return m.outlier_start[r + 1] - m.outlier_start[r]; };
    std::stable_sort(as.row.begin(), as.row.end(), [&](uint32_t a, uint32_t b) {
      return a / kRowWindow != b / kRowWindow ? a < b : count(a) < count(b);
    });
  }
  as.column.resize(2 * head.pairs);
  for (uint32_t p = 0; p < as.column.size(); p++) {
    const uint32_t group = p / (2 * head.group_pairs), inside = p % (2 * head.group_pairs);
    const uint64_t column = uint64_t(group) * head.group_columns + inside;
    as.column[p] = inside < head.group_columns && column < m.columns ? int64_t(column) : -1;
  }
  return as;
}

}  // namespace

void pack_planes(Bytes& bytes, const Matrix& m) {
  const auto [low, bits] = range(m);
  Header& head = bytes.head();
  head.group_columns = m.group_size;
  head.group_pairs = divide_up(m.group_size, 2 * kRun) * kRun;
  head.pairs = head.group_pairs * divide_up(m.columns, m.group_size);
  const Arrangement as = arrange(m, head);
  store_rows(bytes, as, m.rows);
  store_row_steps(bytes, m, as);
  if (m.step_form == 2)
    store_steps(bytes, m, as);
  else
    store_factors(bytes, m, as);
  // the low bits of a wide code are a plane of their own; the last one is about as often negative as positive
  std::vector<int> widths;
  for (int left = bits; left > 0; left -= widths.back()) widths.push_back(left <= 4 ? left : left <= 6 ? 3 : 4);
  const int last = 1 << (bits - widths.back());
  const int32_t base = int32_t(std::floor(double(low) / last)) * last;
  uint32_t planes = 0;
  for (int shift = 0; shift < bits; shift += widths[planes++]) {
    const int32_t own = (shift ? 0 : low - base) + (1 << shift == last ? base : 0);
    const Plane plane = pack_plane(bytes, m, as, widths[planes], shift, own, 1 << shift, low);
    bytes.head().plane[planes] = plane;
  }
  bytes.head().planes = planes;
  store_outliers(bytes, m, as);
}

}  // namespace nearplane
