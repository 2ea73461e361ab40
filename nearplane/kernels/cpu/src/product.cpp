#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace nearplane {

float load(const void* from, size_t i, uint32_t type) {
  if (type == kF32) return static_cast<const float*>(from)[i];
  const uint16_t half = static_cast<const uint16_t*>(from)[i];
  return type == kF16 ? f16_to_float(half) : bf16_to_float(half);
}

void load_row(const void* from, size_t first, size_t count, uint32_t type, float* to) {
  const uint16_t* half = static_cast<const uint16_t*>(from) + (type == kF32 ? 0 : first);
  if (type == kF32)
    std::memcpy(to, static_cast<const float*>(from) + first, count * 4);
  else if (type == kF16)
    for (size_t i = 0; i < count; i++) to[i] = f16_to_float(half[i]);
  else
    for (size_t i = 0; i < count; i++) to[i] = bf16_to_float(half[i]);
}

void store(void* to, size_t i, float value, uint32_t type) {
  if (type == kF32)
    static_cast<float*>(to)[i] = value;
  else
    static_cast<uint16_t*>(to)[i] = type == kF16 ? float_to_f16(value) : float_to_bf16(value);
}

void store_row(void* to, size_t first, const float* values, size_t count, uint32_t type) {
  if (type == kF32)
    std::memcpy(static_cast<float*>(to) + first, values, count * 4);
  else if (type == kF16)
    for (size_t i = 0; i < count; i++) static_cast<uint16_t*>(to)[first + i] = float_to_f16(values[i]);
  else
    for (size_t i = 0; i < count; i++) static_cast<uint16_t*>(to)[first + i] = float_to_bf16(values[i]);
}

namespace {

constexpr uint32_t kHeld = 4;        // rows of activations whose results are put in order at the end
constexpr uint32_t kShares = 8;      // of a thread, where rows suffice
constexpr uint64_t kFetched = 4096;  // bytes of a block's sparse entries that are asked for ahead

// Memory that a thread keeps between calls.
template <class T>
struct Scratch {
  std::vector<T> data;
  T* get(size_t size) {
    if (data.size() < size + 64 / sizeof(T)) data.resize(size + 64 / sizeof(T));
    return data.data();
  }
};

// How many bf16 numbers an activation times its column's step is the sum of; 0: more than two.
int terms_needed(const Header& head, uint32_t type) {
  const uint32_t bits = (type == kF32 ? 24 : type == kF16 ? 11 : 8) + (head.factor_at ? head.factor_bits : 0);
  return bits <= 8 ? 1 : bits <= 16 ? 2 : 0;
}

class Inputs {
 public:
  // `nth`: among the products at once, whose memory is apart.
  Inputs(const View& view, const Kernels& k, uint32_t nth, const void* x, uint32_t batch, uint32_t type) : rows(batch) {
    const Header& head = view.head;
    const size_t places = 2 * size_t(head.pairs);
    const int terms = k.bf16 && !head.tile_places ? terms_needed(head, type) : 0;
    const bool as_is = terms == 1 && !head.column_at && !head.factor_at && places == head.columns &&
                       reinterpret_cast<uintptr_t>(x) % 4 == 0;
    const bool floats = !as_is || head.escape.at;
    static thread_local Scratch<float> place_memory[kTogether], raw_memory[kTogether];
    static thread_local Scratch<uint16_t> pair_memory[kTogether];
    float* place = place_memory[nth].get(floats ? batch * places : 0);
    float* raw = raw_memory[nth].get(head.outlier.at ? size_t(batch) * head.columns : 0);
    uint16_t* pairs = pair_memory[nth].get(as_is ? 0 : terms * batch * places);
    for (uint32_t b = 0; b < batch; b++) {
      const size_t offset = size_t(b) * head.columns;
      if (floats) {
        k.arrange(view, x, offset, type, place + b * places);
        rows[b].place = place + b * places;
      }
      if (head.outlier.at) {
        rows[b].raw = raw + offset;
        for (uint32_t c = 0; c < head.columns; c++) raw[offset + c] = load(x, offset + c, type);
      }
      rows[b].terms = terms;
      rows[b].exact_pairs = type == kBF16 ? head.exact_pairs : 0;
      if (as_is) {
        rows[b].bf16[0] = reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(x) + offset);
        continue;
      }
      if (!terms) continue;
      uint16_t* first = pairs + terms * b * places;
      k.split(rows[b].place, places, first, terms == 2 ? first + places : nullptr);
      for (int t = 0; t < terms; t++) rows[b].bf16[t] = reinterpret_cast<const uint32_t*>(first + t * places);
    }
  }
  std::vector<Activations> rows;
};

// The rows of activations as integers, for tiles; their places are those of `rows`.
class IntegerInputs {
 public:
  IntegerInputs(const View& view, const Kernels& k, uint32_t nth, const std::vector<Activations>& rows)
      : tiles(rows.size()) {
    const size_t places = 2 * size_t(view.head.pairs), across = view.tiles_across(), batch = rows.size();
    static thread_local Scratch<int8_t> parts[kTogether];
    static thread_local Scratch<float> scales[kTogether];
    static thread_local Scratch<int32_t> sums[kTogether];
    const bool split = view.head.input_bits > 8;
    int8_t* part = parts[nth].get((1 + split) * batch * places);
    float* scale = scales[nth].get(batch * across);
    int32_t* sum = sums[nth].get(batch * across);
    for (size_t b = 0; b < batch; b++) {
      view.each_tile([&](uint32_t t, uint32_t first, uint32_t count) {
        int8_t* low = split ? part + places + first : nullptr;
        k.tile_inputs(rows[b].place + first, count, part + first, low, scale + t, sum + t);
      });
      tiles[b] = {part, split ? part + places : nullptr, scale, sum};
      part += (1 + split) * places;
      scale += across;
      sum += across;
    }
  }
  std::vector<TileInputs> tiles;
};

// acc[b][128] += the codes in lanes
void add_lanes(const View& view, const Kernels& k, uint32_t block, const std::vector<Activations>& x, float* acc) {
  const Header& head = view.head;
  if (x.size() == 1 && k.lanes_product) return k.lanes_product(view, block, x[0], acc);
  alignas(64) static thread_local Tile tile[kGroups][kChunk];
  static thread_local LaneState state[kGroups];
  const uint32_t first = block * kGroups, last = std::min(first + kGroups, view.groups());
  const uint32_t* border = view.at<uint32_t>(head.segment_at);
  const uint8_t* cell = view.at<uint8_t>(head.cell_at) + uint64_t(block) * head.segments;
  const Book book(view);
  for (uint32_t g = first, n; g < last; g += n) {
    n = together(last - g);
    for (uint32_t v = 0; v < n; v++)
      start_lanes(state[v], view.at<uint16_t>(head.stream_at) + view.at<uint32_t>(head.start_at)[g + v]);
    for (uint32_t s = 0; s < head.segments; s++) {
      for (uint32_t j = border[s]; j < border[s + 1]; j += book.chunk()) {
        const int pairs = int(std::min(book.chunk(), border[s + 1] - j));
        k.decode_lanes(state, int(n), book, cell[s], pairs, tile[0]);
        for (uint32_t v = 0, both; v < n; v += both) {
          both = std::min(2u, n - v);
          k.multiply(tile[v], int(both), j, pairs, x.data(), int(x.size()), acc + (g + v - first) * kRows, kBlockRows);
        }
      }
    }
  }
}

// The steps of 16 rows in one group of columns.
void steps_of(const View& view, uint32_t group, uint32_t across, float* step) {
  const size_t at = (size_t(group) * view.column_groups() + across) * kRows;
  for (int i = 0; i < kRows; i++) step[i] = load(view.base + view.head.step_at, at + i, view.head.step_type);
}

// acc[b][16 * count] += step * (codes of a plane), for one or two groups.
void add_plane(const View& view, const Kernels& k, const Plane& plane, uint32_t group, uint32_t count,
               const std::vector<Activations>& x, float* acc) {
  const Header& head = view.head;
  if (x.size() == 1 && k.plane_product) {
    for (uint32_t v = 0; v < count; v++) k.plane_product(view, plane, group + v, x[0], acc + v * kRows);
    return;
  }
  alignas(64) static thread_local Tile tile[2][kChunk];
  static thread_local Scratch<float> memory;
  const uint32_t rows = count * kRows;
  float* part = memory.get(x.size() * rows);
  const uint8_t* words = view.base + plane.at + group * view.plane_group_bytes(plane);
  for (uint32_t g = 0; g < view.column_groups(); g++) {
    float* sum = head.step_at ? part : acc;
    const int stride = head.step_at ? int(rows) : kBlockRows;
    if (head.step_at) std::fill(part, part + x.size() * rows, 0.0f);
    for (uint32_t j = g * head.group_pairs; j < (g + 1) * head.group_pairs; j += kChunk) {
      const int pairs = int(std::min<uint32_t>(kChunk, (g + 1) * head.group_pairs - j));
      for (uint32_t v = 0; v < count; v++)
        k.decode_plane(words + v * view.plane_group_bytes(plane) + uint64_t(j / kRun) * plane.bits * 64, plane,
                       pairs / kRun, tile[v]);
      k.multiply(tile[0], int(count), j, pairs, x.data(), int(x.size()), sum, stride);
    }
    if (!head.step_at) continue;
    float step[2 * kRows];
    for (uint32_t v = 0; v < count; v++) steps_of(view, group + v, g, step + v * kRows);
    for (size_t b = 0; b < x.size(); b++)
      for (uint32_t i = 0; i < rows; i++) acc[b * kBlockRows + i] += step[i] * part[b * rows + i];
  }
}

constexpr float kOnes[kRows] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// acc[b][16] += step * (codes of a group's tiles)
void add_tiles(const View& view, const Kernels& k, uint32_t group, const std::vector<TileInputs>& x, float* acc) {
  const Header& head = view.head;
  const uint8_t* kind = view.at<uint8_t>(head.tile_kind_at) + uint64_t(group) * view.tiles_across();
  const uint8_t* at = view.base + head.tile_at + uint64_t(view.at<uint32_t>(head.tile_start_at)[group]) * 64;
  const uint8_t* step = view.base + head.step_at + uint64_t(group) * view.column_groups() * kRows * view.step_bytes();
  uint32_t next = 2 * head.group_pairs;  // where the steps of another group of columns begin
  view.each_tile([&](uint32_t t, uint32_t first, uint32_t places) {
    if (first == next) {
      step += kRows * view.step_bytes();
      next += 2 * head.group_pairs;
    }
    const uint8_t* steps = head.step_at ? step : reinterpret_cast<const uint8_t*>(kOnes);
    const Tiles tile{at, kind[t], places, first, t, steps, head.step_at ? head.step_type : uint32_t(kF32)};
    k.add_tile(tile, x.data(), uint32_t(x.size()), acc, kBlockRows);
    at += uint64_t(tile_words(kind[t], places)) * 64;
  });
}

void add_sparse(const View& view, const Kernels& k, const Sparse& s, float scale, uint32_t group,
                const std::vector<Activations>& x, float* acc) {
  if (!s.at) return;
  const uint32_t* start = view.at<uint32_t>(s.start_at);
  const uint8_t* entries = view.base + s.at + uint64_t(start[group]) * s.step_bytes();
  for (size_t b = 0; b < x.size(); b++)
    k.sparse(s, entries, start[group + 1] - start[group], scale, s.places ? x[b].place : x[b].raw,
             acc + b * kBlockRows);
}

}  // namespace

// The sums of groups first .. last - 1 of a block for every row of activations: acc[b][128]. Lanes need whole blocks.
static void groups_product(const View& view, const Kernels& k, uint32_t first, uint32_t last,
                           const std::vector<Activations>& x, const std::vector<TileInputs>& integers, float* acc) {
  const Header& head = view.head;
  std::fill(acc, acc + x.size() * kBlockRows, 0.0f);
  for (const Sparse* s : {&head.escape, &head.outlier}) {
    if (!s->at) continue;
    const uint32_t* start = view.at<uint32_t>(s->start_at);
    const uint64_t from = uint64_t(start[first]) * s->step_bytes(), to = uint64_t(start[last]) * s->step_bytes();
    for (uint64_t at = from; at < std::min(to, from + kFetched); at += 64) __builtin_prefetch(view.base + s->at + at);
  }
  if (head.segments) add_lanes(view, k, first / kGroups, x, acc);
  if (head.tile_places)
    for (uint32_t g = first; g < last; g++) add_tiles(view, k, g, integers, acc + (g - first) * kRows);
  for (uint32_t g = first; g < last; g += 2)
    for (uint32_t p = 0; p < head.planes; p++)
      add_plane(view, k, head.plane[p], g, std::min(2u, last - g), x, acc + (g - first) * kRows);
  for (uint32_t g = first; g < last; g++)
    add_sparse(view, k, head.escape, float(1u << head.shift), g, x, acc + (g - first) * kRows);
  if (head.scale != 1)
    for (size_t i = 0; i < x.size() * kBlockRows; i++) acc[i] *= head.scale;
  for (uint32_t g = first; g < last; g++) add_sparse(view, k, head.outlier, 1, g, x, acc + (g - first) * kRows);
}

// Put the values of `count` rows of the layout at the matrix's rows, behind `at`.
static void scatter_rows(const View& view, uint32_t first, uint32_t count, const float* values, uint32_t type, void* y,
                         size_t at) {
  const uint16_t* row = view.at<uint16_t>(view.head.row_at) + first;
  at += first / kRowWindow * kRowWindow;  // a block lies in one window
  uint16_t half[kBlockRows];
  if (type == kF32) {
    for (uint32_t i = 0; i < count; i++) static_cast<float*>(y)[at + row[i]] = values[i];
  } else {
    store_row(half, 0, values, count, type);
    for (uint32_t i = 0; i < count; i++) static_cast<uint16_t*>(y)[at + row[i]] = half[i];
  }
}

// A product whose activations are prepared; shares of its rows are independent.
struct Prepared {
  View view;
  const void* bias;
  void* y;
  uint32_t batch, type;
  Inputs in;
  std::vector<TileInputs> integers;
  uint32_t groups_of_share = kGroups;
  float* held = nullptr;  // [batch][rows in the layout's order]: threads that write into y in its order share lines

  Prepared(const Product& one, const Kernels& k, uint32_t nth, const void* x, uint32_t rows, uint32_t x_type)
      : view(one.layout), bias(one.bias), y(one.y), batch(rows), type(x_type), in(view, k, nth, x, rows, x_type) {
    static thread_local Scratch<float> memory[kTogether];
    if (view.head.tile_places) {
      integers = IntegerInputs(view, k, nth, in.rows).tiles;
      // tiles are decoded group by group: few at a time where there are few, so that they are shared evenly
      groups_of_share = std::clamp<uint32_t>(view.groups() / (kShares * threads()), 1, kGroups);
    }
    if (view.head.row_at && threads() > 1 && batch <= kHeld) held = memory[nth].get(size_t(batch) * view.head.rows);
  }

  uint32_t shares() const { return divide_up(view.groups(), groups_of_share); }

  void run(const Kernels& k, uint32_t share) const {
    static thread_local Scratch<float> memory;
    const Header& head = view.head;
    float* acc = memory.get(size_t(batch) * kBlockRows);
    const uint32_t begin = share * groups_of_share, end = std::min(begin + groups_of_share, view.groups());
    groups_product(view, k, begin, end, in.rows, integers, acc);
    const uint32_t first = begin * kRows, count = std::min(end * kRows, head.rows) - first;
    for (uint32_t b = 0; b < batch; b++, acc += kBlockRows) {
      const size_t at = size_t(b) * head.rows;
      if (head.row_palette)
        for (uint32_t i = 0; i < count; i++) acc[i] *= view.row_step(first + i);
      if (bias)
        for (uint32_t i = 0; i < count; i++) acc[i] += load(bias, view.row(first + i), type);
      if (held)
        std::memcpy(held + at + first, acc, count * sizeof(float));
      else if (!head.row_at)
        store_row(y, at + first, acc, count, type);
      else
        scatter_rows(view, first, count, acc, type, y, at);
    }
  }

  // Put what is held in the order of y.
  void finish() const {
    if (!held) return;
    for (uint32_t b = 0; b < batch; b++)
      for (uint32_t first = 0; first < view.head.rows; first += kBlockRows) {
        const size_t at = size_t(b) * view.head.rows;
        scatter_rows(view, first, std::min<uint32_t>(kBlockRows, view.head.rows - first), held + at + first, type, y,
                     at);
      }
  }
};

void products(const Product* each, uint32_t count, const void* x, uint32_t batch, uint32_t type) {
  if (!batch) return;
  const Kernels& k = kernels();
  std::vector<Prepared> prepared;
  prepared.reserve(count);
  uint32_t first[kTogether + 1] = {};
  for (uint32_t n = 0; n < count; n++) {
    prepared.emplace_back(each[n], k, n, x, batch, type);
    first[n + 1] = first[n] + prepared[n].shares();
  }
  parallel_for(first[count], [&](uint32_t share) {
    uint32_t n = 0;
    while (share >= first[n + 1]) n++;
    prepared[n].run(k, share - first[n]);
  });
  for (const Prepared& one : prepared) one.finish();
}

void product(const View& view, const void* x, uint32_t batch, uint32_t type, const void* bias, void* y) {
  const Product one{view.base, bias, y};
  products(&one, 1, x, batch, type);
}

}  // namespace nearplane
