#include <algorithm>
#include <cmath>
#include <numeric>

#include "code.h"
#include "pack.h"
#include "parallel.h"

namespace nearplane {

namespace {

constexpr uint32_t kSegments = 16;
constexpr double kTableBits = kTable * 16, kSplitEntropy = 3.9;
constexpr int kWidestSplit = 8;
constexpr double kFreeGrowth = 1.05;
constexpr double kFixedBits = 8 * (sizeof(Header) + kSlack + 256);  // with what aligns sections
constexpr double kGroupBits = 32 + 10 * kLanes;                     // a start, and the last word of every lane
constexpr double kEntryBits = 22;  // of an escape: 8 for its value and 8 or 16 for its gap

// The integers' histogram for |v| < 4096; what lies beyond counts at the ends.
std::vector<uint64_t> histogram(const Matrix& m) {
  constexpr int kSpan = 4096;
  std::vector<uint64_t> bins(2 * kSpan + 1, 0);
  const uint64_t count = uint64_t(m.rows) * m.columns;
  for (uint64_t k = 0; k < count; k++) bins[std::clamp<int64_t>(m.code[k], -kSpan, kSpan) + kSpan]++;
  return bins;
}

double entropy(const std::vector<uint64_t>& bins, int shift) {
  const int span = int(bins.size()) / 2;
  std::vector<uint64_t> joined((bins.size() >> shift) + 2, 0);
  uint64_t total = 0;
  for (int k = 0; k < int(bins.size()); k++) {
    joined[((k - span) >> shift) + (span >> shift) + 1] += bins[k];
    total += bins[k];
  }
  double bits = 0;
  for (uint64_t n : joined)
    if (n) bits -= double(n) * std::log2(double(n) / double(total));
  return bits / double(total);
}

// How many low bits are nearly random and better kept as they are.
int choose_shift(const Matrix& m) {
  const auto bins = histogram(m);
  int shift = 0;
  while (shift < kWidestSplit && entropy(bins, shift) > kSplitEntropy) shift++;
  return shift;
}

struct Plan {
  Arrangement as;
  int window;
  uint32_t pairs, segments, exact_pairs = 0;
  uint32_t stride = 1;  // every so many-th block is counted
  bool rows_moved, columns_moved;
  std::vector<uint32_t> border;  // [segments + 1], in pairs
  std::vector<uint64_t> bins;    // [blocks][segments][kBins]
  std::vector<Code> codes;
  std::vector<uint8_t> cell;  // [blocks][segments]
  double bits = 0;            // by the codes' own estimate, then by counting
};

void count_cells(const Matrix& m, int shift, Plan& plan) {
  const uint32_t blocks = divide_up(m.rows, kBlockRows);
  plan.bins.assign(uint64_t(blocks) * plan.segments * kBins, 0);
  parallel_for(blocks, [&](uint32_t b) {
    if (b % plan.stride) return;
    for (uint32_t i = b * kBlockRows; i < std::min(m.rows, (b + 1) * kBlockRows); i++) {
      const int32_t* code = m.code + uint64_t(plan.as.row[i]) * m.columns;
      for (uint32_t s = 0; s < plan.segments; s++) {
        uint64_t* bins = &plan.bins[(uint64_t(b) * plan.segments + s) * kBins];
        for (uint32_t p = 2 * plan.border[s]; p < 2 * plan.border[s + 1]; p++)
          if (plan.as.column[p] >= 0) bins[std::clamp(code[plan.as.column[p]] >> shift, -kReach, kReach) + kReach]++;
      }
    }
  });
}

double mean_magnitude(const uint64_t* bins) {
  double sum = 0, count = 1e-9;
  for (int k = 0; k < kBins; k++) {
    sum += double(bins[k]) * std::abs(k - kReach);
    count += double(bins[k]);
  }
  return sum / count;
}

// Share `tables` codes among the cells: cells of about the same spread take the same.
void share_codes(Plan& plan, const std::vector<uint32_t>& by_spread, uint32_t tables) {
  std::vector<Code> codes;
  double bits = kTableBits * tables;
  const uint32_t cells = uint32_t(by_spread.size());
  for (uint32_t t = 0; t < tables; t++) {
    uint64_t sum[kBins] = {};
    for (uint32_t k = uint64_t(cells) * t / tables; k < uint64_t(cells) * (t + 1) / tables; k++)
      for (int v = 0; v < kBins; v++) sum[v] += plan.bins[uint64_t(by_spread[k]) * kBins + v];
    codes.push_back(fit_code(sum, plan.window));
    bits += codes.back().bits;
  }
  if (!plan.codes.empty() && bits >= plan.bits) return;
  plan.bits = bits;
  plan.codes = codes;
  for (uint32_t t = 0; t < tables; t++)
    for (uint32_t k = uint64_t(cells) * t / tables; k < uint64_t(cells) * (t + 1) / tables; k++)
      plan.cell[by_spread[k]] = uint8_t(t);
}

void choose_codes(Plan& plan) {
  const uint32_t cells = uint32_t(plan.bins.size() / kBins);
  plan.cell.assign(cells, 0);
  std::vector<double> spread(cells);
  std::vector<uint32_t> by_spread;
  for (uint32_t k = 0; k < cells; k++) {
    spread[k] = mean_magnitude(&plan.bins[uint64_t(k) * kBins]);
    if (k / plan.segments % plan.stride == 0) by_spread.push_back(k);
  }
  std::stable_sort(by_spread.begin(), by_spread.end(), [&](uint32_t a, uint32_t b) { return spread[a] < spread[b]; });
  for (uint32_t tables = 1; tables <= std::min<uint32_t>(uint32_t(by_spread.size()), 32); tables *= 2)
    share_codes(plan, by_spread, tables);
}

// How many sparse entries a row of the layout needs.
uint32_t count_escapes(const Matrix& m, int shift, const Plan& plan, uint32_t i) {
  const int32_t* code = m.code + uint64_t(plan.as.row[i]) * m.columns;
  const uint8_t* cell = &plan.cell[uint64_t(i / kBlockRows) * plan.segments];
  uint32_t count = 0;
  for (uint32_t s = 0; s < plan.segments; s++) {
    const int reach = plan.codes[cell[s]].reach;
    for (uint32_t p = 2 * plan.border[s]; p < 2 * plan.border[s + 1]; p++)
      count += plan.as.column[p] >= 0 && std::abs(int64_t(code[plan.as.column[p]] >> shift)) > reach;
  }
  return count;
}

// Entries that 16 rows side by side take, as many as the longest needs.
double padded(const std::vector<uint32_t>& count, const std::vector<uint32_t>& order) {
  double steps = 0;
  for (size_t g = 0; g < order.size(); g += kRows) {
    uint32_t longest = 0;
    for (size_t i = g; i < std::min(g + kRows, order.size()); i++) longest = std::max(longest, count[order[i]]);
    steps += longest;
  }
  return steps * kRows;
}

// Put rows with about as many escapes side by side within their block, where that is shorter; then count all bits.
void settle(const Matrix& m, int shift, Plan& plan) {
  std::vector<uint32_t> count(m.rows), order(m.rows);
  parallel_for(divide_up(m.rows, kBlockRows), [&](uint32_t b) {
    if (b % plan.stride) return;
    for (uint32_t i = b * kBlockRows; i < std::min(m.rows, (b + 1) * kBlockRows); i++)
      count[i] = count_escapes(m, shift, plan, i);
  });
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint32_t> sorted = order;
  std::stable_sort(sorted.begin(), sorted.end(), [&](uint32_t a, uint32_t b) {
    return a / kBlockRows != b / kBlockRows ? a < b : count[a] < count[b];
  });
  double entries = plan.stride * padded(count, order);
  const double fewer = plan.stride * padded(count, sorted);
  if (kEntryBits * fewer + (plan.rows_moved ? 0 : 16.0 * m.rows) < kEntryBits * entries) {
    std::vector<uint32_t> row(m.rows);
    for (uint32_t i = 0; i < m.rows; i++) row[i] = plan.as.row[sorted[i]];
    plan.as.row = row;
    plan.rows_moved = true;
    entries = fewer;
  }
  plan.bits = kFixedBits + kGroupBits * divide_up(m.rows, kRows) + kTableBits * double(plan.codes.size()) +
              kEntryBits * entries + 8.0 * double(plan.cell.size());
  plan.bits += 16.0 * (plan.rows_moved ? m.rows : 0) + 16.0 * (plan.columns_moved ? m.columns : 0);
  for (const Code& code : plan.codes) plan.bits += plan.stride * code.stream;
}

// By what rows and columns are sorted: sums of magnitudes, and whether a column's step needs more than one bf16 number.
struct Keys {
  std::vector<double> row, column;
  std::vector<bool> inexact;
  uint32_t exact;  // columns that are not
};

Keys keys_of(const Matrix& m, int shift) {
  Keys keys;
  magnitudes(m, shift, keys.row, keys.column);
  keys.inexact.assign(m.columns, false);
  if (m.step_form == 1) {
    const float scale = common_scale(m);
    for (uint32_t c = 0; c < m.columns; c++) keys.inexact[c] = significant_bits(m.step[c] / scale) > 0;
  }
  keys.exact = uint32_t(std::count(keys.inexact.begin(), keys.inexact.end(), false));
  return keys;
}

// Cut pairs first .. last into about `count` segments of whole windows.
void cut(Plan& plan, uint32_t first, uint32_t last, uint32_t count) {
  const uint32_t take = uint32_t(pairs_taken(plan.window)), windows = (last - first) / take;
  for (uint32_t s = 1; s <= count && windows; s++)
    plan.border.push_back(first + uint32_t(uint64_t(windows) * s / count) * take);
}

void sort_columns(const Matrix& m, const Keys& keys, Plan& plan) {
  std::stable_sort(plan.as.column.begin(), plan.as.column.begin() + m.columns, [&](int64_t a, int64_t b) {
    return keys.inexact[a] != keys.inexact[b] ? keys.inexact[b] : keys.column[a] < keys.column[b];
  });
  const uint32_t take = uint32_t(pairs_taken(plan.window)), count = std::clamp(plan.pairs / 16, 1u, kSegments);
  plan.exact_pairs = keys.exact == m.columns ? plan.pairs : keys.exact / 2 / take * take;
  const uint32_t before = uint32_t(uint64_t(count) * plan.exact_pairs / plan.pairs);
  cut(plan, 0, plan.exact_pairs, std::max(1u, before));
  cut(plan, plan.exact_pairs, plan.pairs, std::max(1u, count - before));
}

Plan arrange(const Matrix& m, int shift, int window, bool by_row, bool by_column, uint32_t stride, const Keys& keys) {
  Plan plan;
  plan.stride = stride;
  plan.window = window;
  plan.rows_moved = by_row;
  plan.columns_moved = by_column;
  plan.as.row.resize(m.rows);
  std::iota(plan.as.row.begin(), plan.as.row.end(), 0);
  if (by_row)
    std::stable_sort(plan.as.row.begin(), plan.as.row.end(), [&](uint32_t a, uint32_t b) {
      return a / kRowWindow != b / kRowWindow ? a < b : keys.row[a] < keys.row[b];
    });
  const uint32_t take = uint32_t(pairs_taken(window)), unit = shift ? kRun * take : take;
  plan.pairs = divide_up(m.columns, 2 * unit) * unit;
  plan.as.column.assign(2 * plan.pairs, -1);
  std::iota(plan.as.column.begin(), plan.as.column.begin() + m.columns, 0);
  plan.border.push_back(0);
  if (by_column)
    sort_columns(m, keys, plan);
  else
    plan.border.push_back(plan.pairs);
  plan.segments = uint32_t(plan.border.size()) - 1;
  count_cells(m, shift, plan);
  choose_codes(plan);
  settle(m, shift, plan);
  return plan;
}

Plan choose_plan(const Matrix& m, int shift) {
  const Keys keys = keys_of(m, shift);
  // a quarter of a large matrix tells which arrangement is the shortest
  const uint32_t stride = m.rows >= 16 * kBlockRows ? 4 : 1;
  Plan best = arrange(m, shift, 6, false, false, stride, keys);
  bool rows = false, columns = false;
  // columns that stay in place need no gathering of activations, unless steps need more bits: that is worth a little
  const double leeway = keys.exact < m.columns ? 1.005 : 0.997;
  for (int option = 1; option < 4; option++) {
    const bool by_row = option & 1, by_column = option & 2;
    if ((by_row && m.rows <= kBlockRows) || (by_column && m.columns >= kNoColumn)) continue;
    Plan plan = arrange(m, shift, 6, by_row, by_column, stride, keys);
    if (plan.bits >= best.bits * (by_column && !columns ? leeway : 1)) continue;
    best = std::move(plan);
    rows = by_row;
    columns = by_column;
  }
  if (stride > 1) best = arrange(m, shift, 6, rows, columns, 1, keys);
  // shorter windows are faster: taken where the whole stays close to the record's size
  Plan faster = arrange(m, shift, 5, rows, columns, 1, keys);
  const double planes = double(shift) * m.rows * m.columns;
  const bool close = faster.bits + planes < kFreeGrowth * 8 * double(m.stored_bytes) || faster.bits < best.bits * 1.005;
  return close ? faster : best;
}

// One group's words in the order in which the decoder asks for them.
std::vector<uint16_t> encode_group(const Matrix& m, int shift, const Plan& plan, uint32_t g, Rows& escapes) {
  const uint8_t* cell = &plan.cell[uint64_t(g / kGroups) * plan.segments];
  std::vector<uint8_t> length(uint64_t(plan.pairs) * kLanes);
  std::vector<uint16_t> words[kLanes];
  size_t used[kLanes];
  for (int lane = 0; lane < kLanes; lane++) {
    const uint32_t i = g * kRows + lane / 2;
    const int32_t* code = i < m.rows ? m.code + uint64_t(plan.as.row[i]) * m.columns : nullptr;
    uint32_t buffer = 0, held = 0;
    for (uint32_t s = 0; s < plan.segments; s++) {
      const Code& table = plan.codes[cell[s]];
      const int shortest = int(std::min_element(table.length.begin(), table.length.end()) - table.length.begin());
      for (uint32_t j = plan.border[s]; j < plan.border[s + 1]; j++) {
        const uint32_t place = 2 * j + (lane & 1);
        const int64_t column = plan.as.column[place];
        int symbol = shortest;
        if (code && column >= 0) {
          const int v = code[column] >> shift;
          symbol = table.clipped(v) + table.reach;
          if (table.clipped(v) != v) correct(escapes[i], place, int64_t(v) - table.clipped(v));
        }
        length[uint64_t(j) * kLanes + lane] = uint8_t(table.length[symbol]);
        buffer |= uint32_t(table.word[symbol]) << held;
        held += table.length[symbol];
        if (held >= 16) {
          words[lane].push_back(uint16_t(buffer));
          buffer >>= 16;
          held -= 16;
        }
      }
    }
    words[lane].push_back(uint16_t(buffer));
    used[lane] = words[lane].size();
  }
  std::vector<uint16_t> stream;
  uint32_t at[kLanes] = {}, taken[kLanes] = {};
  size_t needed = 2 * kLanes;
  auto take = [&](int lane) {
    const bool real = taken[lane] < used[lane];
    stream.push_back(real ? words[lane][taken[lane]] : 0);
    taken[lane]++;
    if (real) needed = std::max(needed, stream.size());
  };
  for (int k = 0; k < 2; k++)
    for (int lane = 0; lane < kLanes; lane++) take(lane);
  const uint32_t step = uint32_t(pairs_taken(plan.window));
  for (uint32_t j = 0; j < plan.pairs; j += step)
    for (int lane = 0; lane < kLanes; lane++) {
      for (uint32_t k = 0; k < step; k++) at[lane] += length[uint64_t(j + k) * kLanes + lane];
      if (at[lane] >= 16) {
        at[lane] -= 16;
        take(lane);
      }
    }
  // what is asked for after the last word that matters may be anything
  stream.resize(needed);
  return stream;
}

void store_stream(Bytes& bytes, const Matrix& m, int shift, const Plan& plan) {
  const uint32_t groups = divide_up(m.rows, kRows);
  Rows escapes(m.rows);
  std::vector<std::vector<uint16_t>> parts(groups);
  parallel_for(groups, [&](uint32_t g) { parts[g] = encode_group(m, shift, plan, g, escapes); });
  std::vector<uint32_t> start(groups + 1, 0);
  std::vector<uint16_t> stream;
  for (uint32_t g = 0; g < groups; g++) {
    stream.insert(stream.end(), parts[g].begin(), parts[g].end());
    start[g + 1] = uint32_t(stream.size());
    parts[g] = {};
  }
  uint64_t at = bytes.add(start);
  bytes.head().start_at = at;
  at = bytes.add(stream);
  bytes.head().stream_at = at;
  bytes.head().stream_words = stream.size();
  for (auto& row : escapes)
    std::stable_sort(row.begin(), row.end(), [](const Entry& a, const Entry& b) { return a.place < b.place; });
  const Sparse sparse = pack_sparse(bytes, escapes, true);
  bytes.head().escape = sparse;
}

}  // namespace

void pack_lanes(Bytes& bytes, const Matrix& m) {
  const int shift = choose_shift(m);
  const Plan plan = choose_plan(m, shift);
  Header& head = bytes.head();
  head.group_columns = m.columns;
  head.pairs = head.group_pairs = plan.pairs;
  head.segments = plan.segments;
  head.shift = uint32_t(shift);
  head.window = uint32_t(plan.window);
  head.exact_pairs = plan.exact_pairs;
  head.tables = uint32_t(plan.codes.size());
  if (plan.rows_moved) store_rows(bytes, plan.as, m.rows);
  store_row_steps(bytes, m, plan.as);
  if (plan.columns_moved) {
    std::vector<uint16_t> column;
    for (int64_t c : plan.as.column) column.push_back(c < 0 ? kNoColumn : uint16_t(c));
    const uint64_t at = bytes.add(column);
    bytes.head().column_at = at;
  }
  store_factors(bytes, m, plan.as);
  std::vector<uint16_t> tables(plan.codes.size() * kTable);
  for (size_t t = 0; t < plan.codes.size(); t++) fill_table(plan.codes[t], float(1 << shift), &tables[t * kTable]);
  uint64_t at = bytes.add(plan.border);
  bytes.head().segment_at = at;
  at = bytes.add(plan.cell);
  bytes.head().cell_at = at;
  at = bytes.add(tables);
  bytes.head().table_at = at;
  store_stream(bytes, m, shift, plan);
  uint32_t planes = 0;
  for (int done = 0; done < shift; planes++) {
    const int bits = std::min(4, shift - done);
    const Plane plane = pack_plane(bytes, m, plan.as, bits, done, 0, 1 << done, 0);
    bytes.head().plane[planes] = plane;
    done += bits;
  }
  bytes.head().planes = planes;
  store_outliers(bytes, m, plan.as);
}

}  // namespace nearplane
