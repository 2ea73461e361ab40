#include "pack.h"

#include <algorithm>
#include <cstdlib>

namespace nearplane {

namespace {

constexpr uint32_t kDense = 2, kGrouped = 2;  // of a record: code_tag, step_form

// A plane's values are small integers that bf16 holds.
bool fits_planes(const Range& r) { return r.bits <= 8 && std::abs(int64_t(r.low)) <= 240; }

}  // namespace

Range range(const Matrix& m) {
  const auto [least, most] = std::minmax_element(m.code, m.code + uint64_t(m.rows) * m.columns);
  Range r{*least, 1};
  while (uint64_t(int64_t(*most) - *least) >> r.bits) r.bits++;
  return r;
}

void magnitudes(const Matrix& m, int shift, std::vector<double>& row, std::vector<double>& column) {
  row.assign(m.rows, 0);
  column.assign(m.columns, 0);
  for (uint32_t r = 0; r < m.rows; r++) {
    const int32_t* code = m.code + uint64_t(r) * m.columns;
    double sum = 0;
    for (uint32_t c = 0; c < m.columns; c++) {
      const double size = std::abs(double((code[c] >> shift) + (shift ? 0.5 : 0)));
      sum += size;
      column[c] += size;
    }
    row[r] = sum;
  }
}

std::vector<uint8_t> pack(const Matrix& m) {
  Bytes bytes;
  Header& head = bytes.head();
  std::memcpy(head.magic, "NPLC", 4);
  head.version = 1;
  head.rows = m.rows;
  head.columns = m.columns;
  head.stored_bytes = m.stored_bytes;
  head.coder = m.coder;
  head.code_tag = m.code_tag;
  head.step_form = m.step_form;
  head.step_type = kF32;
  head.scale = 1;
  const bool grouped = m.step_form == kGrouped;
  if (m.input_bits) {
    if (!fits_tiles(m)) return {};
    pack_tiles(bytes, m);
    return bytes.finish();
  }
  const bool planes = (grouped || m.code_tag == kDense) && fits_planes(range(m));
  if (grouped && !planes) return {};
  if (planes)
    pack_planes(bytes, m);
  else
    pack_lanes(bytes, m);
  return bytes.finish();
}

}  // namespace nearplane
