#include "unpack.h"

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "product.h"

namespace nearplane {

namespace {

// Where a place's column is among the matrix's; padding goes to one element behind the row.
std::vector<uint32_t> columns_of(const View& view) {
  std::vector<uint32_t> column(2 * view.head.pairs);
  for (uint32_t p = 0; p < column.size(); p++) column[p] = std::min(view.column(p), view.head.columns);
  return column;
}

template <class Add>
void each_entry(const View& view, const Sparse& s, uint32_t group, const Add& add) {
  if (!s.at) return;
  const uint32_t* start = view.at<uint32_t>(s.start_at);
  const uint8_t* step = view.base + s.at + uint64_t(start[group]) * s.step_bytes();
  uint32_t at[kRows] = {};
  for (uint32_t k = start[group]; k < start[group + 1]; k++, step += s.step_bytes())
    for (int i = 0; i < kRows; i++) {
      at[i] += entry_gap(s, step, i);
      const float value = entry_value(s, step, i);
      if (value != 0) add(i, at[i], value);
    }
}

// The same of one row: add(column or place, value).
template <class Add>
void row_entries(const View& view, const Sparse& s, uint32_t group, uint32_t row, const Add& add) {
  if (!s.at) return;
  const uint32_t* start = view.at<uint32_t>(s.start_at);
  const uint8_t* step = view.base + s.at + uint64_t(start[group]) * s.step_bytes();
  uint32_t at = 0;
  for (uint32_t k = start[group]; k < start[group + 1]; k++, step += s.step_bytes()) {
    at += entry_gap(s, step, int(row));
    const float value = entry_value(s, step, int(row));
    if (value != 0) add(at, value);
  }
}

// Call use(first place, places, codes, the lowest integer) for every tile of a row of a group.
template <class Use>
void each_part(const View& view, uint32_t group, uint32_t row, const Use& use) {
  const uint8_t* kind = view.at<uint8_t>(view.head.tile_kind_at) + uint64_t(group) * view.tiles_across();
  const uint8_t* tile =
      view.base + view.head.tile_at + uint64_t(view.at<uint32_t>(view.head.tile_start_at)[group]) * 64;
  uint8_t codes[kTilePlaces + 20];
  view.each_tile([&](uint32_t t, uint32_t first, uint32_t places) {
    tile_row(tile, kind[t], places, int(row), codes);
    use(first, places, codes, tile_low(kind[t]));
    tile += uint64_t(tile_words(kind[t], places)) * 64;
  });
}

// Decode a group: use(tile, first pair, pairs) for every piece of its lanes, then of each plane.
template <class Use>
void each_tile(const View& view, const Kernels& k, uint32_t group, const Use& use) {
  const Header& head = view.head;
  alignas(64) static thread_local Tile tile[kChunk];
  if (head.segments) {
    static thread_local LaneState state;
    start_lanes(state, view.at<uint16_t>(head.stream_at) + view.at<uint32_t>(head.start_at)[group]);
    const uint32_t* border = view.at<uint32_t>(head.segment_at);
    const uint8_t* cell = view.at<uint8_t>(head.cell_at) + uint64_t(group / kGroups) * head.segments;
    const Book book(view);
    for (uint32_t s = 0; s < head.segments; s++)
      for (uint32_t j = border[s]; j < border[s + 1]; j += book.chunk()) {
        const int pairs = int(std::min(book.chunk(), border[s + 1] - j));
        k.decode_lanes(&state, 1, book, cell[s], pairs, tile);
        use(tile, j, pairs);
      }
  }
  for (uint32_t p = 0; p < head.planes; p++) {
    const Plane& plane = head.plane[p];
    const uint8_t* words = view.base + plane.at + group * view.plane_group_bytes(plane);
    for (uint32_t j = 0; j < head.pairs; j += kChunk) {
      const int pairs = int(std::min<uint32_t>(kChunk, head.pairs - j));
      k.decode_plane(words + uint64_t(j / kRun) * plane.bits * 64, plane, pairs / kRun, tile);
      use(tile, j, pairs);
    }
  }
}

// The integers of 16 rows, each of columns + 1 elements.
void group_codes(const View& view, const Kernels& k, uint32_t group, const std::vector<uint32_t>& column,
                 int64_t* sums) {
  const size_t stride = size_t(view.head.columns) + 1;
  std::fill(sums, sums + kRows * stride, 0);
  for (uint32_t i = 0; i < kRows && view.head.tile_places; i++)
    each_part(view, group, i, [&](uint32_t first, uint32_t some, const uint8_t* codes, int32_t low) {
      for (uint32_t p = 0; p < some; p++) sums[i * stride + column[first + p]] += low + codes[p];
    });
  each_tile(view, k, group, [&](const Tile* tile, uint32_t first, int pairs) {
    for (int j = 0; j < pairs; j++)
      for (int lane = 0; lane < kLanes; lane++)
        sums[lane / 2 * stride + column[2 * (first + j) + (lane & 1)]] += int64_t(bf16_to_float(tile[j][lane]));
  });
  each_entry(view, view.head.escape, group, [&](int i, uint32_t place, float value) {
    sums[i * stride + column[place]] += int64_t(value) * (int64_t(1) << view.head.shift);
  });
}

// Call use(row of the matrix, its integers) for all rows.
template <class Use>
void each_row(const View& view, const Use& use) {
  const Kernels& k = kernels();
  const std::vector<uint32_t> column = columns_of(view);
  parallel_for(view.groups(), [&](uint32_t g) {
    static thread_local std::vector<int64_t> sums;
    const size_t stride = size_t(view.head.columns) + 1;
    sums.resize(kRows * stride);
    group_codes(view, k, g, column, sums.data());
    for (uint32_t i = 0; i < kRows && g * kRows + i < view.head.rows; i++) use(g * kRows + i, sums.data() + i * stride);
  });
}

}  // namespace

void unpack_codes(const View& view, int32_t* code) {
  each_row(view, [&](uint32_t i, const int64_t* sums) {
    int32_t* out = code + uint64_t(view.row(i)) * view.head.columns;
    for (uint32_t c = 0; c < view.head.columns; c++) out[c] = int32_t(sums[c]);
  });
}

void unpack_steps(const View& view, float* step) {
  const Header& head = view.head;
  if (head.step_form == 0) {
    step[0] = head.scale;
    return;
  }
  if (head.step_form == 1) {
    for (uint32_t p = 0; p < 2 * head.pairs; p++)
      if (view.column(p) < head.columns) step[view.column(p)] = head.scale * view.factor(p);
    return;
  }
  const uint32_t across = view.column_groups();
  for (uint32_t i = 0; i < head.rows; i++)
    for (uint32_t g = 0; g < across; g++)
      step[size_t(view.row(i)) * across + g] =
          load(view.base + head.step_at, (size_t(i / kRows) * across + g) * kRows + i % kRows, head.step_type);
}

void unpack_row_steps(const View& view, float* step) {
  for (uint32_t i = 0; i < view.head.rows; i++) step[view.row(i)] = view.row_step(i);
}

uint64_t unpack_outliers(const View& view, int32_t* start, int32_t* column, uint16_t* value) {
  const Header& head = view.head;
  std::vector<std::vector<std::pair<uint32_t, float>>> rows(head.rows);
  uint64_t total = 0;
  for (uint32_t g = 0; g < view.groups(); g++)
    each_entry(view, head.outlier, g, [&](int i, uint32_t c, float v) {
      if (g * kRows + i >= head.rows) return;
      rows[view.row(g * kRows + i)].push_back({c, v});
      total++;
    });
  if (!start) return total;
  uint64_t at = 0;
  for (uint32_t r = 0; r < head.rows; r++) {
    start[r] = int32_t(at);
    for (auto [c, v] : rows[r]) {
      column[at] = int32_t(c);
      value[at++] = float_to_f16(v);
    }
  }
  start[head.rows] = int32_t(at);
  return total;
}

namespace {

// The sums of some rows' codes of a group as floats, in the order of places: sums[count][2 * pairs].
void some_floats(const View& view, const Kernels& k, uint32_t group, const uint32_t* inside, uint32_t count,
                 float* sums) {
  const size_t places = 2 * size_t(view.head.pairs);
  if (!view.head.tile_places) std::fill(sums, sums + count * places, 0.0f);
  for (uint32_t n = 0; n < count && view.head.tile_places; n++)
    each_part(view, group, inside[n], [&](uint32_t first, uint32_t some, const uint8_t* codes, int32_t low) {
      for (uint32_t p = 0; p < some; p++) sums[n * places + first + p] = float(low + codes[p]);
    });
  each_tile(view, k, group, [&](const Tile* tile, uint32_t first, int pairs) {
    for (uint32_t n = 0; n < count; n++) {
      float* to = sums + n * places + 2 * first;
      for (int j = 0; j < pairs; j++) {
        to[2 * j] += bf16_to_float(tile[j][2 * inside[n]]);
        to[2 * j + 1] += bf16_to_float(tile[j][2 * inside[n] + 1]);
      }
    }
  });
  const float unit = float(1u << view.head.shift);
  for (uint32_t n = 0; n < count; n++)
    row_entries(view, view.head.escape, group, inside[n],
                [&](uint32_t place, float value) { sums[n * places + place] += value * unit; });
}

// The sums of 16 rows' codes as floats, in the order of places: sums[16][2 * pairs].
void group_floats(const View& view, const Kernels& k, uint32_t group, float* sums) {
  const size_t places = 2 * size_t(view.head.pairs);
  if (!view.head.tile_places) std::fill(sums, sums + kRows * places, 0.0f);
  for (uint32_t i = 0; i < kRows && view.head.tile_places; i++)
    each_part(view, group, i, [&](uint32_t first, uint32_t some, const uint8_t* codes, int32_t low) {
      for (uint32_t p = 0; p < some; p++) sums[i * places + first + p] = float(low + codes[p]);
    });
  uint32_t words[kRows][kChunk];
  each_tile(view, k, group, [&](const Tile* tile, uint32_t first, int pairs) {
    k.transpose(tile, pairs, words[0], kChunk);
    for (int i = 0; i < kRows; i++) {
      float* to = sums + i * places + 2 * first;
      for (int j = 0; j < pairs; j++) {
        to[2 * j] += bf16_to_float(uint16_t(words[i][j]));
        to[2 * j + 1] += bf16_to_float(uint16_t(words[i][j] >> 16));
      }
    }
  });
  const float unit = float(1u << view.head.shift);
  each_entry(view, view.head.escape, group,
             [&](int i, uint32_t place, float value) { sums[i * places + place] += value * unit; });
}

// One row, sums in the order of places, as step * sum in the order of columns.
void finish_row(const View& view, const std::vector<uint32_t>& column, const float* step, const float* sums,
                float* line) {
  const Header& head = view.head;
  if (head.step_form == 2) {
    for (uint32_t g = 0; g < view.column_groups(); g++) {
      const uint32_t first = g * head.group_columns, count = std::min(head.group_columns, head.columns - first);
      for (uint32_t c = 0; c < count; c++) line[first + c] = step[g] * sums[2 * size_t(g) * head.group_pairs + c];
    }
  } else if (!head.column_at) {
    if (head.step_form)
      for (uint32_t c = 0; c < head.columns; c++) line[c] = step[c] * sums[c];
    else
      for (uint32_t c = 0; c < head.columns; c++) line[c] = step[0] * sums[c];
  } else {
    for (size_t p = 0; p < column.size(); p++) line[column[p]] = sums[p];
    if (head.step_form)
      for (uint32_t c = 0; c < head.columns; c++) line[c] *= step[c];
    else
      for (uint32_t c = 0; c < head.columns; c++) line[c] *= step[0];
  }
}

}  // namespace

namespace {

// What all rows of a matrix have in common when they are decoded.
struct Shared {
  std::vector<uint32_t> column;
  std::vector<float> step;  // of the matrix, or of every column; of rows with steps of their own: those of one row
  std::vector<float> place_step;  // of every place, 0 of padding; none where rows have steps of their own
  bool large;                     // whether an integer may exceed what a float holds exactly

  explicit Shared(const View& view) : column(columns_of(view)) {
    const Header& head = view.head;
    step.resize(head.step_form == 2 ? view.column_groups() : head.step_form ? head.columns : 1);
    if (head.step_form != 2) {
      unpack_steps(view, step.data());
      for (uint32_t c : column) place_step.push_back(c >= head.columns ? 0 : step[head.step_form ? c : 0]);
    }
    // floats hold sums below 2^24; larger integers are corrected by floats, and rounded once
    large = head.escape.at && head.escape.type == kF32;
  }
};

// For fewer rows of a group than this, their lanes are read one by one; for more, all 16 are transposed.
constexpr uint32_t kFewRows = 4;

// The integers of 16 rows as floats, in the order of places: [16][2 * pairs].
const float* group_sums(const View& view, const Kernels& k, const Shared& shared, uint32_t group) {
  static thread_local std::vector<float> sums;
  static thread_local std::vector<int64_t> whole;
  const size_t places = 2 * size_t(view.head.pairs), stride = size_t(view.head.columns) + 1;
  sums.resize(kRows * places);
  if (!shared.large) {
    group_floats(view, k, group, sums.data());
    return sums.data();
  }
  whole.resize(kRows * stride);
  group_codes(view, k, group, shared.column, whole.data());
  for (int i = 0; i < kRows; i++)
    for (size_t p = 0; p < places; p++) sums[i * places + p] = float(whole[i * stride + shared.column[p]]);
  return sums.data();
}

// The same as `write_row`, for rows whose steps are products of one of the row and one of the column.
void write_scaled(const View& view, const Shared& shared, uint32_t i, const float* sums, uint32_t type, void* weight,
                  size_t to) {
  static thread_local std::vector<float> line, ordered;
  const Header& head = view.head;
  const size_t places = shared.place_step.size(), at = to * head.columns;
  line.resize(places);
  ordered.resize(size_t(head.columns) + 1);  // padding goes behind the row
  const float row = head.row_palette ? view.row_step(i) : 1;
  const float* step = shared.place_step.data();
  float* values = line.data();  // not the vector, whose address belongs to a thread: loops would look it up
  for (size_t p = 0; p < places; p++) values[p] = row * step[p] * sums[p];
  if (!head.column_at) return store_row(weight, at, values, head.columns, type);
  const uint32_t* column = shared.column.data();
  float* out = ordered.data();
  for (size_t p = 0; p < places; p++) out[column[p]] = values[p];
  store_row(weight, at, out, head.columns, type);
}

// Write row `i` of the layout, whose integers are `sums`, as row `to` of `weight`.
void write_row(const View& view, const Shared& shared, uint32_t i, const float* sums, uint32_t type, void* weight,
               size_t to) {
  static thread_local std::vector<float> line, own;
  const Header& head = view.head;
  if (head.step_form != 2 && !head.outlier.at) return write_scaled(view, shared, i, sums, type, weight, to);
  const uint32_t group = i / kRows, inside = i % kRows, across = view.column_groups();
  line.resize(size_t(head.columns) + 1);
  const float* step = shared.step.data();
  if (head.step_form == 2) {
    own.resize(across);
    for (uint32_t g = 0; g < across; g++)
      own[g] = load(view.base + head.step_at, (size_t(group) * across + g) * kRows + inside, head.step_type);
    step = own.data();
  }
  finish_row(view, shared.column, step, sums, line.data());
  if (head.outlier.at) row_entries(view, head.outlier, group, inside, [&](uint32_t c, float v) { line[c] += v; });
  store_row(weight, to * head.columns, line.data(), head.columns, type);
}

}  // namespace

void unpack_weight(const View& view, uint32_t type, void* weight) {
  const Kernels& k = kernels();
  const Shared shared(view);
  parallel_for(view.groups(), [&](uint32_t g) {
    const float* sums = group_sums(view, k, shared, g);
    for (uint32_t i = g * kRows; i < std::min((g + 1) * kRows, view.head.rows);
         i++, sums += 2 * size_t(view.head.pairs))
      write_row(view, shared, i, sums, type, weight, view.row(i));
  });
}

struct RowReader {
  Shared shared;
  std::vector<uint16_t> place;  // where each row of the matrix is among the layout's, in its window of kRowWindow

  explicit RowReader(const View& view) : shared(view) {
    if (!view.head.row_at) return;
    place.resize(view.head.rows);
    for (uint32_t i = 0; i < view.head.rows; i++) place[view.row(i)] = uint16_t(i % kRowWindow);
  }
  uint32_t of(uint32_t row) const { return place.empty() ? row : row / kRowWindow * kRowWindow + place[row]; }
};

RowReader* row_reader(const View& view) { return new RowReader(view); }
void free_row_reader(RowReader* reader) { delete reader; }

namespace {

// Some rows of one group: `wanted` are places in index and weight, `place` those of the rows in the layout.
void group_rows(const View& view, const Shared& shared, const uint32_t* wanted, uint32_t some, const uint32_t* place,
                uint32_t type, void* weight) {
  const Kernels& k = kernels();
  const uint32_t group = place[*wanted] / kRows;
  const size_t places = 2 * size_t(view.head.pairs);
  if (some >= kFewRows || shared.large) {
    const float* sums = group_sums(view, k, shared, group);
    for (uint32_t n = 0; n < some; n++)
      write_row(view, shared, place[wanted[n]], sums + place[wanted[n]] % kRows * places, type, weight, wanted[n]);
    return;
  }
  static thread_local std::vector<float> few;
  uint32_t inside[kFewRows];
  for (uint32_t n = 0; n < some; n++) inside[n] = place[wanted[n]] % kRows;
  few.resize(some * places);
  some_floats(view, k, group, inside, some, few.data());
  for (uint32_t n = 0; n < some; n++)
    write_row(view, shared, place[wanted[n]], few.data() + n * places, type, weight, wanted[n]);
}

}  // namespace

bool unpack_rows(const View& view, const RowReader& reader, const int64_t* index, uint32_t count, uint32_t type,
                 void* weight) {
  std::vector<uint32_t> place(count), order(count), start;
  for (uint32_t n = 0; n < count; n++) {
    if (index[n] < 0 || index[n] >= int64_t(view.head.rows)) return false;
    place[n] = reader.of(uint32_t(index[n]));
    order[n] = n;
  }
  // rows of one group are decoded together
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return place[a] < place[b]; });
  for (uint32_t n = 0; n < count; n++)
    if (!n || place[order[n]] / kRows != place[order[n - 1]] / kRows) start.push_back(n);
  start.push_back(count);
  parallel_for(uint32_t(start.size() - 1), [&](uint32_t s) {
    group_rows(view, reader.shared, order.data() + start[s], start[s + 1] - start[s], place.data(), type, weight);
  });
  return true;
}

}  // namespace nearplane
