#include <algorithm>
#include <limits>
#include <numeric>

#include "pack.h"
#include "parallel.h"
#include "tiles.h"

namespace nearplane {

namespace {

constexpr int kSpan = 64;           // integers beyond -kSpan .. kSpan - 1 are escapes in every tile
constexpr double kEscapeBits = 56;  // of an escape: 26 with what fills the other rows' places, and the time it takes
constexpr double kLeeway = 0.99;    // columns that stay in place need no gathering of activations

struct Choice {
  uint8_t kind;
  double bits;  // of the tile, its escapes included
};

// The cheapest form of a tile whose integers are counted in bins[v + kSpan + 1]; at the ends, what lies beyond.
// `whole`: without escapes, which have no steps of a row and group.
Choice cheapest(const uint32_t* bins, uint32_t places, bool whole) {
  constexpr int kBins = 2 * kSpan + 2;
  uint32_t below[kBins + 1] = {};
  for (int k = 0; k < kBins; k++) below[k + 1] = below[k] + bins[k];
  Choice best{0, std::numeric_limits<double>::infinity()};
  for (uint32_t form = 0; form < kForms; form++)
    for (uint32_t up = 0; up < 2; up++) {
      const uint8_t kind = uint8_t(form | up << 4);
      if (!valid_kind(kind)) continue;
      const int first = tile_low(kind) + kSpan + 1, last = first + int(tile_form(kind).levels);
      const uint32_t outside = below[kBins] - (below[last] - below[first]);
      const double cost = 512.0 * tile_words(kind, places) + kEscapeBits * outside;
      if (cost < best.bits && !(whole && outside)) best = {kind, cost};
    }
  return best;
}

struct Plan {
  Arrangement as;
  std::vector<uint8_t> kind;  // [groups][tiles across]
  double bits = 0;
};

void choose_kinds(const Matrix& m, const Header& head, Plan& plan) {
  const View view(&head);
  const uint32_t groups = divide_up(m.rows, kRows), tiles = view.tiles_across();
  plan.kind.assign(size_t(groups) * tiles, 0);
  std::vector<double> bits(groups, 0);
  parallel_for(groups, [&](uint32_t g) {
    std::vector<uint32_t> bins(size_t(tiles) * (2 * kSpan + 2), 0);
    for (uint32_t i = g * kRows; i < std::min(m.rows, (g + 1) * kRows); i++) {
      const int32_t* code = m.code + uint64_t(plan.as.row[i]) * m.columns;
      view.each_tile([&](uint32_t t, uint32_t first, uint32_t places) {
        uint32_t* own = &bins[size_t(t) * (2 * kSpan + 2)];
        const int64_t* column = &plan.as.column[first];
        for (uint32_t p = 0; p < places; p++)
          if (column[p] >= 0) own[std::clamp(code[column[p]], -kSpan - 1, kSpan) + kSpan + 1]++;
      });
    }
    view.each_tile([&](uint32_t t, uint32_t, uint32_t places) {
      const Choice c = cheapest(&bins[size_t(t) * (2 * kSpan + 2)], places, m.step_form == 2);
      plan.kind[size_t(g) * tiles + t] = c.kind;
      bits[g] += c.bits;
    });
  });
  plan.bits = std::accumulate(bits.begin(), bits.end(), 0.0);
}

Plan arrange(const Matrix& m, const Header& head, const std::vector<double>* row, const std::vector<double>* column) {
  Plan plan;
  plan.as.row.resize(m.rows);
  std::iota(plan.as.row.begin(), plan.as.row.end(), 0);
  if (row)
    std::stable_sort(plan.as.row.begin(), plan.as.row.end(), [&](uint32_t a, uint32_t b) {
      return a / kRowWindow != b / kRowWindow ? a < b : (*row)[a] < (*row)[b];
    });
  plan.as.column.assign(2 * size_t(head.pairs), -1);
  const uint32_t width = 2 * head.group_pairs;
  for (uint32_t c = 0; c < m.columns; c++)
    plan.as.column[size_t(c / head.group_columns) * width + c % head.group_columns] = c;
  if (column)
    std::stable_sort(plan.as.column.begin(), plan.as.column.begin() + m.columns,
                     [&](int64_t a, int64_t b) { return (*column)[a] < (*column)[b]; });
  choose_kinds(m, head, plan);
  plan.bits += (row ? 16.0 * m.rows : 0) + (column ? 16.0 * m.columns : 0);
  return plan;
}

// The shortest of: all in place, rows sorted by magnitude, columns, both.
Plan choose_plan(const Matrix& m, const Header& head, bool& rows, bool& columns) {
  std::vector<double> row, column;
  magnitudes(m, 0, row, column);
  rows = columns = false;
  Plan best = arrange(m, head, nullptr, nullptr);
  for (int option = 1; option < 4; option++) {
    const bool by_row = option & 1, by_column = option & 2;
    if ((by_row && m.rows <= uint32_t(kRows)) ||
        (by_column && (head.pairs != head.group_pairs || m.columns >= kNoColumn)))
      continue;
    Plan plan = arrange(m, head, by_row ? &row : nullptr, by_column ? &column : nullptr);
    if (plan.bits >= best.bits * (by_column && !columns ? kLeeway : 1)) continue;
    best = std::move(plan);
    rows = by_row;
    columns = by_column;
  }
  return best;
}

// Write a group's tiles; integers that do not fit go to `escapes`.
void fill_group(const Matrix& m, const Header& head, const Plan& plan, uint32_t g, uint8_t* to, Rows& escapes) {
  const View view(&head);
  const uint32_t tiles = view.tiles_across();
  view.each_tile([&](uint32_t t, uint32_t first, uint32_t places) {
    const uint8_t kind = plan.kind[size_t(g) * tiles + t];
    const int32_t low = tile_low(kind), high = low + int32_t(tile_form(kind).levels) - 1;
    for (uint32_t i = 0; i < uint32_t(kRows) && g * kRows + i < m.rows; i++) {
      const int32_t* code = m.code + uint64_t(plan.as.row[g * kRows + i]) * m.columns;
      uint8_t codes[kTilePlaces];
      for (uint32_t p = 0; p < places; p++) {
        const int64_t column = plan.as.column[first + p];
        // padding may have any code: its activations are zero
        const int32_t whole = column < 0 ? low : code[column], fits = std::clamp(whole, low, high);
        if (fits != whole) correct(escapes[g * kRows + i], first + p, int64_t(whole) - fits);
        codes[p] = uint8_t(fits - low);
      }
      put_tile_row(to, kind, places, int(i), codes);
    }
    to += size_t(tile_words(kind, places)) * 64;
  });
}

void store_tiles(Bytes& bytes, const Matrix& m, const Plan& plan) {
  const Header head = bytes.head();
  const View view(&head);
  const uint32_t groups = divide_up(m.rows, kRows), tiles = view.tiles_across();
  std::vector<uint32_t> start(groups + 1, 0);
  for (uint32_t g = 0; g < groups; g++) {
    start[g + 1] = start[g];
    view.each_tile([&](uint32_t t, uint32_t, uint32_t places) {
      start[g + 1] += tile_words(plan.kind[size_t(g) * tiles + t], places);
    });
  }
  uint64_t at = bytes.add(plan.kind);
  bytes.head().tile_kind_at = at;
  at = bytes.add(start);
  bytes.head().tile_start_at = at;
  at = bytes.add(nullptr, size_t(start[groups]) * 64);
  bytes.head().tile_at = at;
  Rows escapes(m.rows);
  uint8_t* to = bytes.at(at);
  parallel_for(groups, [&](uint32_t g) { fill_group(m, head, plan, g, to + size_t(start[g]) * 64, escapes); });
  const Sparse sparse = pack_sparse(bytes, escapes, true);
  bytes.head().escape = sparse;
}

}  // namespace

bool fits_tiles(const Matrix& m) {
  if (m.step_form != 2) return true;
  const auto [least, most] = std::minmax_element(m.code, m.code + uint64_t(m.rows) * m.columns);
  return m.group_size % kTileChunk == 0 && *least >= -kSpan && *most < kSpan;
}

void pack_tiles(Bytes& bytes, const Matrix& m) {
  Header& head = bytes.head();
  const bool grouped = m.step_form == 2;
  head.group_columns = grouped ? m.group_size : m.columns;
  head.group_pairs = divide_up(head.group_columns, kTileChunk) * kTileChunk / 2;
  head.pairs = divide_up(m.columns, head.group_columns) * head.group_pairs;
  head.tile_places = kTilePlaces;
  head.input_bits = m.input_bits;
  bool rows, columns;
  const Plan plan = choose_plan(m, head, rows, columns);
  if (rows) store_rows(bytes, plan.as, m.rows);
  store_row_steps(bytes, m, plan.as);
  if (columns) {
    std::vector<uint16_t> column;
    for (int64_t c : plan.as.column) column.push_back(c < 0 ? kNoColumn : uint16_t(c));
    const uint64_t at = bytes.add(column);
    bytes.head().column_at = at;
  }
  if (grouped)
    store_steps(bytes, m, plan.as);
  else
    store_factors(bytes, m, plan.as);
  store_tiles(bytes, m, plan);
  store_outliers(bytes, m, plan.as);
}

}  // namespace nearplane
