// Lays small random matrices out, compares every kernel's products with the definition, then damages the bytes:
// what check() lets through must be safe to multiply by. Run it with AddressSanitizer: `make fuzz`.
//
//   fuzz_kernels SECONDS SEED      case k has the seed SEED + k; with 0 seconds there is one case
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "check.h"
#include "kernels.h"
#include "pack.h"
#include "parallel.h"
#include "product.h"
#include "rans.h"
#include "unpack.h"

using namespace nearplane;

namespace {

constexpr int kDamages = 150;               // of each layout
constexpr int kExtremes = 10;               // of each matrix
constexpr uint64_t kMostWeights = 1 << 18;  // of a damaged layout that is multiplied by
const char* const kNames[] = {"plain", "avx2", "avx_vnni", "avx512", "avx512_bf16", "neon_dot"};

uint64_t seed = 0;
uint64_t matrices = 0, refused = 0, damaged = 0, passed = 0;

void say_seed() { std::fprintf(stderr, "fuzz_kernels: the case's seed is %llu\n", (unsigned long long)seed); }

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz_kernels: seed %llu: %s\n", (unsigned long long)seed, what.c_str());
  std::exit(1);
}

}  // namespace

// called by the undefined-behaviour sanitizer before its report
extern "C" __attribute__((visibility("default"))) void __ubsan_on_report() { say_seed(); }

namespace {

struct Random {
  std::mt19937_64 engine;
  uint64_t bits() { return engine(); }
  uint64_t below(uint64_t n) { return engine() % n; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  float gaussian() { return std::normal_distribution<float>()(engine); }
  template <class T, size_t N>
  T of(const T (&list)[N]) {
    return list[below(N)];
  }
};

// Exactly `size` bytes. Every other one ends before a page that cannot be touched: AddressSanitizer does not see
// gathers.
class Exact {
 public:
  explicit Exact(size_t size, size_t align = 1) : size_(size), guarded_(size % align == 0 && count_++ % 2) {
    if (!guarded_) {
      void* p = nullptr;
      if (posix_memalign(&p, 64, std::max<size_t>(size, 1))) std::abort();
      data_ = static_cast<uint8_t*>(p);
      return;
    }
    whole_ = (size + kPage - 1) / kPage * kPage + kPage;
    auto* p = static_cast<uint8_t*>(mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (p == MAP_FAILED || mprotect(p + whole_ - kPage, kPage, PROT_NONE)) std::abort();
    data_ = p + whole_ - kPage - size;
  }
  explicit Exact(const std::vector<uint8_t>& layout) : Exact(layout.size(), 8) {
    std::copy(layout.begin(), layout.end(), data_);
  }
  Exact(const Exact&) = delete;
  ~Exact() {
    if (guarded_)
      munmap(data_ + size_ + kPage - whole_, whole_);
    else
      std::free(data_);
  }
  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kPage = 4096;
  static inline size_t count_ = 0;
  uint8_t* data_;
  size_t size_, whole_ = 0;
  bool guarded_;
};

// A matrix that owns its parts.
struct Drawn {
  uint32_t rows, columns, group_size, step_form, code_tag, step_type = kF32;
  uint32_t input_bits = 0;
  std::vector<int32_t> code, start, column;
  std::vector<float> step, row_step;
  std::vector<uint16_t> value;
  Matrix view() const {
    const bool sparse = !start.empty();
    return {rows,
            columns,
            group_size,
            step_form,
            code_tag,
            step_type,
            code.data(),
            step.data(),
            row_step.empty() ? nullptr : row_step.data(),
            sparse ? start.data() : nullptr,
            sparse ? column.data() : nullptr,
            sparse ? value.data() : nullptr,
            0,
            0,
            input_bits};
  }
  uint32_t across() const { return divide_up(columns, group_size); }
  float step_at(uint32_t r, uint32_t c) const {
    const float own = step[step_form == 2 ? size_t(r) * across() + c / group_size : step_form ? c : 0];
    return row_step.empty() ? own : row_step[r] * own;
  }
};

void draw_codes(Random& random, Drawn& m) {
  const float sigma = random.of({0.0f, 0.02f, 0.4f, 1.0f, 2.2f, 6.0f, 40.0f, 1e5f});
  const uint32_t bits = 1 + uint32_t(random.below(8));
  const int32_t low = random.of({-(1 << (bits - 1)), 0, -37, 1});
  const uint64_t rare = random.of({0, 0, 20, 1000});
  const bool dense = (m.code_tag == 2 || m.step_form == 2) && !random.one_in(10), constant = random.one_in(12),
             uneven = random.one_in(2);
  std::vector<float> spread(m.columns);
  for (float& s : spread) s = uneven ? std::exp2(random.gaussian()) : 1;
  for (size_t k = 0; k < m.code.size(); k++) {
    if (constant)
      m.code[k] = low;
    else if (dense)
      m.code[k] = low + int32_t(random.below(1u << bits));
    else
      m.code[k] = int32_t(std::lround(random.gaussian() * sigma * spread[k % m.columns]));
    if (!dense && rare && random.one_in(rare)) m.code[k] = int32_t(random.bits());
  }
  if (!dense && random.one_in(8)) m.code[random.below(m.code.size())] = random.of({INT32_MIN, INT32_MAX});
}

void draw_steps(Random& random, Drawn& m) {
  m.step.resize(m.step_form == 2 ? size_t(m.rows) * m.across() : m.step_form ? m.columns : 1);
  if (m.step_form == 2) m.step_type = random.of({kF32, kF16, kBF16});
  const bool ladder = random.one_in(2);
  const float base = std::exp2(float(int(random.below(9)) - 6)) * random.of({1.0f, 1.0078125f});
  for (float& s : m.step) {
    if (m.step_form == 1 && ladder)
      s = base * random.of({1.0f, 1.25f, 1.375f, 1.625f}) * std::exp2(float(int(random.below(5)) - 2));
    else if (m.step_type == kF16)
      s = f16_to_float(float_to_f16(random.gaussian()));
    else
      s = bf16_to_float(float_to_bf16(random.gaussian()));
  }
}

void draw_row_steps(Random& random, Drawn& m) {
  if (m.step_form != 1 || random.one_in(2)) return;
  m.row_step.resize(m.rows);
  for (float& s : m.row_step) s = random.of({1.0f, 1.25f, 1.375f, 1.625f}) * std::exp2(float(int(random.below(4)) - 3));
}

void draw_outliers(Random& random, Drawn& m) {
  const uint64_t rate = random.of({0, 0, 1000, 100, 20, 3});
  if (!rate || !m.row_step.empty()) return;
  m.start.push_back(0);
  for (uint32_t r = 0; r < m.rows; r++) {
    for (uint32_t c = 0; c < m.columns; c++)
      if (random.one_in(rate)) {
        m.column.push_back(int32_t(c));
        const uint16_t half = float_to_f16(random.gaussian());
        m.value.push_back(half & 0x7FFF ? half : 1);
      }
    m.start.push_back(int32_t(m.column.size()));
  }
}

Drawn draw(Random& random) {
  Drawn m;
  m.rows = random.of({1u, 2u, 3u, 15u, 16u, 17u, 32u, 40u, 127u, 128u, 129u, 150u, 257u});
  m.columns = random.of({1u, 2u, 3u, 5u, 31u, 32u, 33u, 64u, 65u, 96u, 127u, 200u, 300u, 700u});
  m.step_form = uint32_t(random.below(3));
  m.code_tag = 1 + uint32_t(random.below(3));
  m.group_size = m.step_form == 2 ? 1 + uint32_t(random.below(m.columns)) : m.columns;
  m.code.resize(size_t(m.rows) * m.columns);
  draw_codes(random, m);
  draw_steps(random, m);
  draw_row_steps(random, m);
  draw_outliers(random, m);
  m.input_bits = random.of({0u, 0u, 8u, 15u});
  return m;
}

template <class Use>
void each_kernel(const Use& use) {
  for (const char* name : kNames)
    if (choose(name)) use(name);
}

uint32_t type_bytes(uint32_t type) { return type == kF32 ? 4 : 2; }

// The weights by their definition.
std::vector<double> weights(const Drawn& m) {
  std::vector<double> w(m.code.size());
  for (size_t k = 0; k < w.size(); k++)
    w[k] = double(m.code[k]) * m.step_at(uint32_t(k / m.columns), uint32_t(k % m.columns));
  for (uint32_t r = 0; !m.start.empty() && r < m.rows; r++)
    for (int32_t k = m.start[r]; k < m.start[r + 1]; k++)
      w[size_t(r) * m.columns + m.column[k]] += f16_to_float(m.value[k]);
  return w;
}

// The largest part that an integer is put together of, where there are several.
double largest_part(const Header& h) {
  double most = 0;
  for (uint32_t p = 0; p < h.planes && h.planes + h.segments > 1; p++)
    most = std::max({most, std::abs(double(h.plane[p].low)),
                     std::abs(double(h.plane[p].low + h.plane[p].unit * ((1 << h.plane[p].bits) - 1)))});
  return most;
}

// Products of `batch` rows, in memory of just the size, compared with doubles.
void compare_product(Random& random, const Drawn& m, const View& view, const std::vector<double>& w, uint32_t batch,
                     uint32_t type, const char* name) {
  const uint32_t width = type_bytes(type), offset = random.one_in(2) ? width : 0;  // also off any vector's alignment
  Exact x(size_t(batch) * m.columns * width + offset), y(size_t(batch) * m.rows * width), bias(m.rows * width);
  uint8_t* const at = x.data() + offset;
  for (size_t k = 0; k < size_t(batch) * m.columns; k++) store(at, k, random.gaussian(), type);
  for (size_t k = 0; k < m.rows; k++) store(bias.data(), k, random.gaussian(), type);
  for (size_t k = 0; k < size_t(batch) * m.rows; k++) store(y.data(), k, std::numeric_limits<float>::quiet_NaN(), type);
  const bool biased = random.one_in(2);
  product(view, at, batch, type, biased ? bias.data() : nullptr, y.data());
  const double part = largest_part(view.head), last = std::ldexp(1, type == kF32 ? -24 : type == kF16 ? -11 : -8);
  const bool tiles = view.head.tile_places;
  const float most_units = view.head.input_bits == 8 ? kLargestByte : kLargestInput;
  for (uint32_t b = 0; b < batch; b++)
    for (uint32_t r = 0; r < m.rows; r++) {
      // tiles take integers in place of activations: off by half of the largest one's share of 16,256 or 127
      double apart = 0, largest = 0;
      for (uint32_t c = 0; c < m.columns && tiles; c++) {
        const double x_c = std::abs(load(at, size_t(b) * m.columns + c, type));
        largest = std::max(largest, m.step_form == 2 ? x_c : x_c * std::abs(double(m.step_at(r, c))));
      }
      double sum = biased ? load(bias.data(), r, type) : 0, square = sum * sum;
      for (uint32_t c = 0; c < m.columns; c++) {
        const size_t k = size_t(r) * m.columns + c;
        const double activation = load(at, size_t(b) * m.columns + c, type),
                     coded = double(m.code[k]) * m.step_at(r, c);
        const double most =
            (std::abs(coded) + std::abs(w[k] - coded) + part * std::abs(m.step_at(r, c))) * std::abs(activation);
        if (tiles)
          apart += std::abs(double(m.code[k])) * largest * (m.step_form == 2 ? std::abs(double(m.step_at(r, c))) : 1);
        sum += w[k] * activation;
        square += most * most;
      }
      if (type == kF16 && std::abs(sum) > 60000) continue;
      // lanes and planes of two terms, outliers, escapes: so many additions round sums of at most this size; six
      // deviations
      const double additions = m.columns * (2.0 * (view.head.planes + 1) + 2) + 8;
      const double limit = std::ldexp(6 * std::sqrt(additions / 3 * square), -24) + last * std::abs(sum) +
                           std::ldexp(1, -25) + 1.01 * apart / 2 / most_units;
      const double got = load(y.data(), size_t(b) * m.rows + r, type);
      if (!(std::abs(got - sum) <= limit))
        fail(std::string(name) + " gives " + std::to_string(got) + ", not " + std::to_string(sum) + " in row " +
             std::to_string(r) + " of " + std::to_string(m.rows) + " x " + std::to_string(m.columns));
    }
}

// What was laid out comes back, whichever kernel decodes.
void compare_parts(const Drawn& m, const View& view, const std::vector<double>& w, const char* name) {
  std::vector<int32_t> code(m.code.size());
  unpack_codes(view, code.data());
  if (code != m.code) fail(std::string(name) + " decodes other integers");
  std::vector<float> step(m.step.size());
  unpack_steps(view, step.data());
  if (step != m.step) fail("other steps");
  std::vector<float> row_step(m.row_step.size());
  if (view.head.row_palette) unpack_row_steps(view, row_step.data());
  if (row_step != m.row_step) fail("other steps of rows");
  if (unpack_outliers(view, nullptr, nullptr, nullptr) != m.value.size()) fail("another number of outliers");
  std::vector<int32_t> start(m.rows + 1), column(m.column.size());
  std::vector<uint16_t> value(m.value.size());
  unpack_outliers(view, start.data(), column.data(), value.data());
  if (!m.start.empty() && (start != m.start || column != m.column || value != m.value)) fail("other outliers");
  std::vector<float> dense(w.size());
  unpack_weight(view, kF32, dense.data());
  for (size_t k = 0; k < w.size(); k++)
    if (!(std::abs(dense[k] - w[k]) <=
          std::ldexp(std::abs(double(m.code[k]) * m.step_at(uint32_t(k / m.columns), uint32_t(k % m.columns))) +
                         std::abs(w[k]),
                     -23)))
      fail(std::string(name) + " decodes another weight");
}

// Everything that reads a layout, on every kernel; the results may be anything.
void use_all(Random& random, const Exact& bytes) {
  const View view(bytes.data());
  const Header& h = view.head;
  const uint64_t count = uint64_t(h.rows) * h.columns;
  if (count > kMostWeights || h.pairs > kMostWeights) return;
  const uint32_t batch = random.of({1u, 2u, 9u}), type = uint32_t(random.below(3)), width = type_bytes(type);
  Exact x(size_t(batch) * h.columns * width), y(size_t(batch) * h.rows * width), weight(count * width), code(count * 4);
  for (size_t k = 0; k < size_t(batch) * h.columns; k++) store(x.data(), k, random.gaussian(), type);
  Exact step(4 * (h.step_form == 2 ? size_t(h.rows) * view.column_groups() : h.step_form ? h.columns : 1));
  Exact start(4 * (size_t(h.rows) + 1)), row_step(4 * size_t(h.rows));
  each_kernel([&](const char*) {
    product(view, x.data(), batch, type, nullptr, y.data());
    unpack_weight(view, type, weight.data());
    unpack_codes(view, reinterpret_cast<int32_t*>(code.data()));
  });
  unpack_steps(view, reinterpret_cast<float*>(step.data()));
  if (h.row_palette) unpack_row_steps(view, reinterpret_cast<float*>(row_step.data()));
  const uint64_t entries = unpack_outliers(view, nullptr, nullptr, nullptr);
  Exact column(entries * 4), value(entries * 2);
  unpack_outliers(view, reinterpret_cast<int32_t*>(start.data()), reinterpret_cast<int32_t*>(column.data()),
                  reinterpret_cast<uint16_t*>(value.data()));
}

uint64_t extreme(Random& random, uint64_t usual) {
  const uint64_t list[] = {0,          1,          2,          3,          15,         16,         255,
                           256,        0x7FFF,     0xFFFF,     0x10000,    0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                           0xFFFFFFE8, 0x7F800000, 0x7FC00000, 1ull << 40, ~0ull,      ~63ull,     usual + 1,
                           usual - 1,  usual + 64, usual - 64, usual * 2,  usual / 2};
  return random.of(list);
}

void damage(Random& random, std::vector<uint8_t>& bytes) {
  const size_t size = bytes.size();
  Header& h = *reinterpret_cast<Header*>(bytes.data());
  const uint64_t section[] = {
      h.row_at,           h.column_at,  h.factor_at,   h.palette_at,     h.step_at,      h.segment_at,      h.cell_at,
      h.table_at,         h.start_at,   h.stream_at,   h.plane[0].at,    h.plane[1].at,  h.escape.start_at, h.escape.at,
      h.outlier.start_at, h.outlier.at, h.row_step_at, h.row_palette_at, h.tile_kind_at, h.tile_start_at,   h.tile_at};
  const uint64_t at = random.of(section);
  auto there = [size](uint64_t from, uint64_t count) { return from && from <= size && count <= size - from; };
  switch (random.below(8)) {
    case 0:
      bytes[random.below(size)] = uint8_t(random.bits());
      break;
    case 1:
      bytes[random.below(sizeof(Header))] ^= uint8_t(1 << random.below(8));
      break;
    case 2: {  // one field of the header; most are of four bytes, and all lie at multiples of that
      const size_t width = random.one_in(3) ? 8 : 4;
      uint8_t* field = bytes.data() + random.below(sizeof(Header) / width) * width;
      uint64_t value = 0;
      std::memcpy(&value, field, width);
      value = extreme(random, value);
      std::memcpy(field, &value, width);
      break;
    }
    case 3: {  // shorter, and the header says so
      bytes.resize(random.one_in(2) ? random.below(size) : size - std::min(size - 1, 64 * random.below(20)));
      const uint64_t now = bytes.size();
      if (now >= 16) std::memcpy(bytes.data() + 8, &now, 8);
      break;
    }
    case 4:
      if (there(at, 64)) bytes[at + random.below(64)] = uint8_t(extreme(random, random.bits()));
      break;  // a section's beginning
    case 5:   // a stream begins elsewhere
      if (const uint64_t group = random.below(divide_up(h.rows, kRows) + 1ull); there(h.start_at, 4 * group + 4)) {
        const uint32_t start = uint32_t(random.below(h.stream_words % size + 2));
        std::memcpy(bytes.data() + h.start_at + 4 * group, &start, 4);
      }
      break;
    case 6:  // long words; the table may lie in the header by now
      if (const uint64_t table = h.table_at; there(table, kTable * 2))
        for (int k = 0; k < kTable; k++)
          if (random.one_in(2)) bytes[table + 2 * k] = uint8_t((bytes[table + 2 * k] & 0xF0) | h.window % 16);
      break;
    default:  // more of it, or all
      for (uint64_t k = 0, n = random.of({4, 64, 1024}); k < n && there(at, k + 1); k++)
        bytes[at + k] = uint8_t(random.bits());
  }
}

void attack(Random& random, const std::vector<uint8_t>& whole) {
  for (int k = 0; k < kDamages; k++) {
    std::vector<uint8_t> bytes = whole;
    for (uint64_t n = 1 + random.below(3); n; n--)
      if (bytes.size() >= sizeof(Header)) damage(random, bytes);
    const Exact exact(bytes);
    damaged++;
    if (check(exact.data(), exact.size())) continue;
    passed++;
    use_all(random, exact);
  }
}

template <class T>
const T* kept(std::vector<std::unique_ptr<Exact>>& memory, const std::vector<T>& list) {
  memory.push_back(std::make_unique<Exact>(list.size() * sizeof(T)));
  std::copy(list.begin(), list.end(), reinterpret_cast<T*>(memory.back()->data()));
  return reinterpret_cast<const T*>(memory.back()->data());
}

// Positive numbers that add up to 2^24.
void frequencies(Random& random, uint64_t count, std::vector<int64_t>& list) {
  int64_t left = (1 << 24) - int64_t(count);
  for (uint64_t k = 0; k < count; k++) {
    const int64_t some =
        k + 1 == count ? left : int64_t(random.below(uint64_t(left) / (random.one_in(4) ? 1 : count) + 1));
    list.push_back(1 + some);
    left -= some;
  }
}

// Matrices and tables as RansBands points at them, in memory of just the size.
struct DrawnBands {
  RansBands in{};
  std::vector<std::unique_ptr<Exact>> memory;
  std::vector<int64_t> row, column, table, frequency;
};

void draw_bands(Random& random, DrawnBands& drawn) {
  RansBands& in = drawn.in;
  for (uint32_t* n : {&in.rows, &in.columns}) *n = 1 + uint32_t(random.below(40));
  in.bands = std::min(in.rows, 1 + uint32_t(random.below(3)));
  if ((in.bands - 1) * divide_up(in.rows, in.bands) >= in.rows) in.bands = 1;
  for (uint32_t* n : {&in.row_classes, &in.column_classes, &in.tables}) *n = 1 + uint32_t(random.below(4));
  in.symbols = 1 + uint32_t(random.below(60));
  frequencies(random, in.row_classes, drawn.row);
  frequencies(random, in.column_classes, drawn.column);
  for (uint32_t t = 0; t < in.tables; t++) frequencies(random, in.symbols, drawn.frequency);
  drawn.table.resize(in.row_classes + in.column_classes - 1);
  for (int64_t& t : drawn.table) t = int64_t(random.below(in.tables));
  in.row_frequency = kept(drawn.memory, drawn.row);
  in.column_frequency = kept(drawn.memory, drawn.column);
  in.table = kept(drawn.memory, drawn.table);
  in.frequency = kept(drawn.memory, drawn.frequency);
}

bool decode_streams(DrawnBands& drawn, const std::vector<std::vector<uint32_t>>& streams, const Exact& symbol) {
  std::vector<const uint32_t*> stream;
  std::vector<uint64_t> words;
  for (const auto& some : streams) {
    stream.push_back(kept(drawn.memory, some));
    words.push_back(some.size());
  }
  drawn.in.stream = stream.data(), drawn.in.words = kept(drawn.memory, words);
  return decode_rans(drawn.in, reinterpret_cast<int32_t*>(symbol.data()));
}

// Any words in streams whose tables are as the caller promises.
void attack_rans(Random& random) {
  DrawnBands drawn;
  draw_bands(random, drawn);
  std::vector<std::vector<uint32_t>> streams(drawn.in.bands);
  for (auto& some : streams) {
    some.resize(random.below(200));
    for (uint32_t& word : some) word = random.one_in(50) ? 0 : uint32_t(random.bits());
  }
  const Exact symbol(size_t(drawn.in.rows) * drawn.in.columns * 4);
  decode_streams(drawn, streams, symbol);
}

// The encoder of docs/formats/rans.md; symbols are pushed from the last to the first.
class Pushed {
 public:
  void push(const int64_t* frequency, uint32_t k) {
    uint64_t begin = 0;
    for (uint32_t i = 0; i < k; i++) begin += uint64_t(frequency[i]);
    const uint64_t f = uint64_t(frequency[k]);
    if (f >> 24) return;  // the only symbol there is: it takes no bits
    if (state_ >= f << 40) {
      words_.push_back(uint32_t(state_));
      state_ >>= 32;
    }
    state_ = ((state_ / f) << 24) + begin + state_ % f;
  }
  std::vector<uint32_t> words() const {
    std::vector<uint32_t> all = words_;
    all.push_back(uint32_t(state_));
    all.push_back(uint32_t(state_ >> 32));
    return all;
  }

 private:
  std::vector<uint32_t> words_;
  uint64_t state_ = uint64_t(1) << 32;
};

std::vector<uint32_t> draw_classes(Random& random, uint32_t count, uint32_t classes) {
  std::vector<uint32_t> list(count);
  for (uint32_t& c : list) c = uint32_t(random.below(classes));
  return list;
}

// Sound streams come back; damaged ones are refused or give symbols, and touch nothing else.
void compare_rans(Random& random) {
  DrawnBands drawn;
  draw_bands(random, drawn);
  const RansBands& in = drawn.in;
  const auto row = draw_classes(random, in.rows, in.row_classes),
             column = draw_classes(random, in.columns, in.column_classes);
  std::vector<int32_t> symbol(size_t(in.rows) * in.columns);
  for (int32_t& z : symbol) z = int32_t(random.below(in.symbols));
  std::vector<std::vector<uint32_t>> streams;
  const uint32_t size = divide_up(in.rows, in.bands);
  for (uint32_t band = 0; band < in.bands; band++) {
    Pushed pushed;
    const uint32_t first = band * size, last = std::min(in.rows, first + size);
    for (uint32_t a = in.row_classes; a-- > 0;)
      for (uint32_t b = in.column_classes; b-- > 0;)
        for (uint32_t i = last; i-- > first;)
          for (uint32_t j = in.columns; j-- > 0;)
            if (row[i] == a && column[j] == b)
              pushed.push(&drawn.frequency[size_t(drawn.table[a + b]) * in.symbols],
                          uint32_t(symbol[size_t(i) * in.columns + j]));
    if (!band && in.column_classes > 1)
      for (uint32_t j = in.columns; j-- > 0;) pushed.push(drawn.column.data(), column[j]);
    if (!band && in.row_classes > 1)
      for (uint32_t i = in.rows; i-- > 0;) pushed.push(drawn.row.data(), row[i]);
    streams.push_back(pushed.words());
  }
  const Exact got(symbol.size() * 4);
  if (!decode_streams(drawn, streams, got)) fail("sound streams are refused");
  if (std::memcmp(got.data(), symbol.data(), got.size())) fail("streams decode to other symbols");
  auto& some = streams[random.below(streams.size())];
  switch (random.below(4)) {
    case 0:
      some[random.below(some.size())] ^= 1u << random.below(32);
      break;
    case 1:
      some.resize(random.below(some.size()));
      break;
    case 2:
      some.insert(some.begin() + int64_t(random.below(some.size() + 1)), uint32_t(random.bits()));
      break;
    default:
      some.back() = 0;
  }
  decode_streams(drawn, streams, got);
}

// Steps, integers and outliers that a record may hold though no method makes them: laid out, they must be safe to use.
void attack_pack(Random& random, Drawn m) {
  const float odd[] = {0.0f,          -0.0f,          1e-45f, -1e-40f,  1.17549435e-38f,
                       3.4028235e38f, -3.4028235e38f, 1.0f,   65504.0f, 1.0e-30f};
  const int32_t extremes[] = {INT32_MIN, INT32_MAX, 0, 1, -1, 1 << 24, (1 << 24) + 1, -(1 << 30), 65536, -32768};
  const uint16_t halves[] = {1, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x3C00};  // finite, and not zero
  const uint64_t often = random.of({1, 2, 20, 300});
  for (float& s : m.step)
    if (random.one_in(often)) s = random.of(odd);
  // steps of 16 bits are the record's own
  if (m.step_type == kF16)
    for (float& s : m.step) s = std::abs(s) > 65504 ? 1 : f16_to_float(float_to_f16(s));
  if (m.step_type == kBF16)
    for (float& s : m.step) s = bits_to_float(float_to_bits(s) & 0xFFFF0000u);
  if (random.one_in(2))
    for (int32_t& z : m.code)
      if (random.one_in(often)) z = random.of(extremes);
  for (uint16_t& v : m.value)
    if (random.one_in(often)) v = random.of(halves);
  const std::vector<uint8_t> whole = pack(m.view());
  if (whole.empty()) return;
  const Exact bytes(whole);
  if (const char* wrong = check(bytes.data(), bytes.size()))
    fail(std::string("an extreme matrix gives a layout that is refused: ") + wrong);
  std::vector<int32_t> code(m.code.size());
  each_kernel([&](const char* name) {
    unpack_codes(View(bytes.data()), code.data());
    if (code != m.code) fail(std::string(name) + " decodes other integers of an extreme matrix");
  });
  use_all(random, bytes);
}

void run_case() {
  Random random{std::mt19937_64(seed)};
  set_threads(random.one_in(8) ? 3 : 1);
  const Drawn m = draw(random);
  const std::vector<uint8_t> whole = pack(m.view());
  matrices++, refused += whole.empty();
  if (whole.empty()) return;
  const Exact bytes(whole);
  if (const char* wrong = check(bytes.data(), bytes.size())) fail(std::string("a sound layout is refused: ") + wrong);
  const View view(bytes.data());
  const std::vector<double> w = weights(m);
  each_kernel([&](const char* name) {
    compare_parts(m, view, w, name);
    for (uint32_t batch : {0u, 1u, random.of({2u, 3u, 5u, 8u, 17u})})
      compare_product(random, m, view, w, batch, uint32_t(random.below(3)), name);
  });
  set_threads(1);
  attack(random, whole);
  for (int k = 0; k < kExtremes; k++) attack_pack(random, m);
  for (int k = 0; k < kDamages; k++) {
    attack_rans(random);
    compare_rans(random);
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: fuzz_kernels SECONDS SEED\n");
    return 2;
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(say_seed);
#endif
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(words[1]));
  seed = std::strtoull(words[2], nullptr, 10);
  do {
    run_case();
    seed++;
  } while (std::chrono::steady_clock::now() < end);
  std::printf(
      "fuzz_kernels: %llu matrices (%llu of no use to the kernels), %llu damaged layouts, %llu of them passed the "
      "check\n",
      (unsigned long long)matrices, (unsigned long long)refused, (unsigned long long)damaged,
      (unsigned long long)passed);
}
