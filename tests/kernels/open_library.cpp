// Opens the library as Python does, and uses its C face on every instruction set that there is: a small program,
// because under an emulator Python with torch takes minutes.
//
//   open_library LIBRARY products   compare results with their definition; print what was chosen, then what is
//   available open_library LIBRARY memory     let allocations fail, wherever: functions must say so and not end the
//   process
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "pack.h"
#include "rans.h"

using namespace nearplane;

namespace {

std::atomic<int64_t> until_failure{INT64_MAX};
std::atomic<bool> failed{false};

}  // namespace

// The library's allocations come here too: a program's own operators take precedence.
#define OUT_OF_LINE __attribute__((noinline))  // else gcc compares malloc with delete
OUT_OF_LINE void* operator new(size_t size) {
  if (until_failure.fetch_sub(1) <= 0) {
    failed = true;
    throw std::bad_alloc();
  }
  if (void* p = std::malloc(size ? size : 1)) return p;
  throw std::bad_alloc();
}
OUT_OF_LINE void operator delete(void* p) noexcept { std::free(p); }
OUT_OF_LINE void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace {

const char* const kNames[] = {"plain", "avx2", "avx_vnni", "avx512", "avx512_bf16", "neon_dot"};
constexpr uint32_t kTypes[] = {kF32, kBF16};
constexpr uint64_t kOne = uint64_t(1) << 24;  // what frequencies of a list add up to

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "open_library: %s\n", what.c_str());
  std::exit(1);
}

struct Library {
  void* opened;
  int (*available)(const char*), (*choose)(const char*);
  const char* (*chosen)();
  void* (*pack)(const Matrix*, unsigned, uint64_t*);
  void (*take)(void*, void*);
  const char* (*check)(const void*, uint64_t);
  int (*product)(const void*, const void*, uint32_t, uint32_t, const void*, void*, unsigned);
  int (*weight)(const void*, uint32_t, void*, unsigned);
  int (*codes)(const void*, int32_t*, unsigned);
  int (*rans)(const RansBands*, int32_t*, unsigned);
  uint64_t (*outliers)(const void*, int32_t*, int32_t*, uint16_t*);

  explicit Library(const char* path) : opened(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (!opened) fail(dlerror());
    find(available, "np_available"), find(choose, "np_choose"), find(chosen, "np_chosen"), find(pack, "np_pack"),
        find(take, "np_take");
    find(check, "np_check"), find(product, "np_product"), find(weight, "np_weight"), find(codes, "np_codes"),
        find(rans, "np_rans");
    find(outliers, "np_outliers");
  }
  template <class Function>
  void find(Function& function, const char* name) {
    void* found = dlsym(opened, name);
    if (!found) fail(std::string("the library has no ") + name);
    std::memcpy(&function, &found, sizeof found);
  }
};

struct Random {
  uint64_t state = 1;
  uint32_t below(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 33) % n;
  }
};

// Integers, steps and activations so small that every sum is a float: results are compared to the last bit.
struct Case {
  std::string name;
  uint32_t rows, columns, group_size, step_form, code_tag;
  std::vector<int32_t> code, start, column;
  std::vector<float> step;
  std::vector<uint16_t> value;

  Matrix matrix() const {
    const bool sparse = !start.empty();
    return {rows,
            columns,
            group_size,
            step_form,
            code_tag,
            kF32,
            code.data(),
            step.data(),
            nullptr,
            sparse ? start.data() : nullptr,
            sparse ? column.data() : nullptr,
            sparse ? value.data() : nullptr,
            uint64_t(rows) * columns,
            0};
  }
  std::vector<float> weights() const {
    std::vector<float> w(code.size());
    const uint32_t across = divide_up(columns, group_size);
    for (uint32_t r = 0; r < rows; r++) {
      for (uint32_t c = 0; c < columns; c++) {
        const uint32_t at = step_form == 2 ? r * across + c / group_size : step_form ? c : 0;
        w[r * columns + c] = float(code[r * columns + c]) * step[at];
      }
      for (int32_t k = start.empty() ? 0 : start[r]; !start.empty() && k < start[r + 1]; k++)
        w[r * columns + uint32_t(column[k])] += 1.5f;
    }
    return w;
  }
};

// Integers of a matrix with one step or one a column: most are small, some are `most`.
Case lanes(const char* name, uint32_t columns, uint32_t spread, int32_t most, bool column_steps, bool outliers) {
  Case c{name, 150, columns, columns, column_steps ? 1u : 0u, 1, {}, {}, {}, {}, {}};
  Random random;
  for (uint32_t k = 0; k < c.rows * columns; k++) {
    const uint32_t width = 1 + spread / (1 + k % columns % 5);
    c.code.push_back(int32_t(random.below(width) + random.below(width)) - int32_t(width));
    if (most && !random.below(40)) c.code.back() = random.below(2) ? most : -most;
  }
  const float steps[] = {0.5f, 1, 1.25f, 2, 1};
  for (uint32_t k = 0; k < (column_steps ? columns : 1); k++) c.step.push_back(steps[k % 5]);
  if (!outliers) return c;
  c.start.push_back(0);
  for (uint32_t r = 0; r < c.rows; r++) {
    for (uint32_t k = random.below(9); k < columns; k += 9 + random.below(40))
      c.column.push_back(int32_t(k)), c.value.push_back(0x3E00);
    c.start.push_back(int32_t(c.column.size()));
  }
  return c;
}

// Integers of just so many bits, with a step a row and group.
Case planes(const char* name, uint32_t bits, uint32_t group_size) {
  Case c{name, 70, 96, group_size, 2, 2, {}, {}, {}, {}, {}};
  Random random;
  for (uint32_t k = 0; k < c.rows * c.columns; k++)
    c.code.push_back(int32_t(random.below(1u << bits)) - (1 << (bits - 1)));
  for (uint32_t k = 0; k < c.rows * divide_up(c.columns, group_size); k++) c.step.push_back(k % 3 ? 0.5f : 0.75f);
  return c;
}

std::vector<Case> cases() {
  return {lanes("one step", 200, 3, 0, false, false),
          lanes("escapes and outliers", 200, 4, 900, false, true),
          lanes("column steps", 333, 6, 0, true, false),
          lanes("low bits in a plane", 65, 300, 0, false, false),
          planes("1 bit", 1, 32),
          planes("2 bits", 2, 96),
          planes("3 bits", 3, 31),
          planes("4 bits", 4, 32),
          planes("8 bits", 8, 96)};
}

struct Words {
  std::vector<uint64_t> data;
  uint64_t bytes;
};  // aligned as a layout has to be

Words laid_out(const Library& library, const Case& c, unsigned threads) {
  const Matrix matrix = c.matrix();
  uint64_t size = 0;
  void* handle = library.pack(&matrix, threads, &size);
  if (!handle) return {{}, size};
  Words words{std::vector<uint64_t>(size / 8 + 1), size};
  library.take(handle, words.data.data());
  return words;
}

// `count` numbers of a type, in memory that starts a number after an aligned one.
struct Numbers {
  uint32_t type;
  std::vector<uint32_t> memory;
  Numbers(uint32_t t, size_t count) : type(t), memory(count + 2) {}
  void* at() { return reinterpret_cast<uint8_t*>(memory.data()) + (type == kF32 ? 4 : 2); }
  void set(size_t k, float value) {
    if (type == kF32)
      static_cast<float*>(at())[k] = value;
    else
      static_cast<uint16_t*>(at())[k] = float_to_bf16(value);
  }
  float get(size_t k) {
    return type == kF32 ? static_cast<float*>(at())[k] : bf16_to_float(static_cast<uint16_t*>(at())[k]);
  }
};

float as_type(uint32_t type, float value) { return type == kF32 ? value : bf16_to_float(float_to_bf16(value)); }

void compare_product(const Library& library, const Case& c, const Words& layout, uint32_t batch, uint32_t type,
                     unsigned threads, const std::string& where) {
  Random random;
  const std::vector<float> w = c.weights();
  Numbers x(type, size_t(batch) * c.columns), bias(type, c.rows), y(type, size_t(batch) * c.rows);
  for (size_t k = 0; k < size_t(batch) * c.columns; k++) x.set(k, float(int32_t(random.below(17)) - 8));
  for (uint32_t r = 0; r < c.rows; r++) bias.set(r, float(r % 4));
  if (library.product(layout.data.data(), x.at(), batch, type, bias.at(), y.at(), threads))
    fail(where + ": the product fails");
  for (uint32_t b = 0; b < batch; b++)
    for (uint32_t r = 0; r < c.rows; r++) {
      float sum = float(r % 4);
      for (uint32_t k = 0; k < c.columns; k++) sum += w[r * c.columns + k] * x.get(size_t(b) * c.columns + k);
      const float got = y.get(size_t(b) * c.rows + r);
      if (got != as_type(type, sum))
        fail(where + ": " + std::to_string(got) + " is not " + std::to_string(sum) + " in row " + std::to_string(r));
    }
}

void compare_weight(const Library& library, const Case& c, const Words& layout, const std::string& where) {
  const std::vector<float> w = c.weights();
  for (uint32_t type : kTypes) {
    Numbers decoded(type, w.size());
    if (library.weight(layout.data.data(), type, decoded.at(), 1)) fail(where + ": the weight fails");
    for (size_t k = 0; k < w.size(); k++)
      if (decoded.get(k) != as_type(type, w[k])) fail(where + ": another weight");
  }
  std::vector<int32_t> code(c.code.size());
  if (library.codes(layout.data.data(), code.data(), 1) || code != c.code) fail(where + ": other integers");
}

void products(const Library& library) {
  std::printf("chosen %s\n", library.chosen());
  for (const char* name : kNames) {
    if (!library.available(name)) {
      if (library.choose(name)) fail(std::string(name) + " is not available, and may be chosen");
      continue;
    }
    if (!library.choose(name) || std::strcmp(library.chosen(), name)) fail(std::string(name) + " cannot be chosen");
    for (const Case& c : cases()) {
      const std::string where = std::string(name) + ", " + c.name;
      const Words layout = laid_out(library, c, 1);
      if (layout.data.empty()) fail(where + ": no layout");
      if (const char* wrong = library.check(layout.data.data(), layout.bytes))
        fail(where + ": a layout is refused: " + wrong);
      for (uint32_t type : kTypes)
        for (uint32_t batch : {1u, 2u, 5u}) compare_product(library, c, layout, batch, type, batch == 5 ? 2 : 1, where);
      compare_weight(library, c, layout, where);
    }
    std::printf("available %s\n", name);
  }
}

// Call call() with all allocations from the first on failing, then from the second on .. (of many, not from each),
// until none does. It returns whether it was short of memory, and looks at its results where not; no call may end the
// process. One that only wanted another thread succeeds.
template <class Call>
void starve(const char* name, const Call& call) {
  for (int64_t k = 0, noticed = 0;; k += 1 + k / 50) {
    failed = false;
    until_failure = k;
    const bool is_short = call();
    until_failure = INT64_MAX;
    noticed += is_short;
    if (is_short && !failed) fail(std::string(name) + " says that memory is short, and it is not");
    if (failed) continue;
    if (!noticed) fail(std::string(name) + " never says that memory is short");
    std::printf("%s %lld\n", name, (long long)noticed);
    return;
  }
}

// One band of 9 x 5 symbols, 0 or 1 as likely; the words mean nothing, so that only 0 (no sound stream) is right.
void starve_rans(const Library& library, unsigned threads) {
  const uint32_t words[] = {1, 2, 3, 4};
  const uint32_t* stream[] = {words, words, words};
  const uint64_t sizes[] = {4, 4, 4};
  const int64_t all[] = {int64_t(kOne)}, half[] = {int64_t(kOne / 2), int64_t(kOne / 2)}, table[] = {0};
  const RansBands bands{9, 5, 3, 1, 1, 1, 2, stream, sizes, all, all, table, half};
  int32_t symbol[9 * 5];
  starve("np_rans", [&] {
    const int result = library.rans(&bands, symbol, threads);
    if (result > 0) fail("np_rans takes words that mean nothing");
    return result < 0;
  });
}

void starve_all(const Library& library, unsigned threads) {
  const Case c = lanes("escapes and outliers", 200, 4, 900, false, true);
  const Matrix matrix = c.matrix();
  std::vector<uint64_t> spare(1 << 16), layout;
  uint64_t bytes = 0;
  starve("np_pack", [&] {
    void* handle = library.pack(&matrix, threads, &bytes);
    if (handle)
      library.take(handle, spare.data());
    else if (bytes)
      fail("np_pack gives a size without bytes");
    return !handle;
  });
  layout = spare;
  starve("np_check", [&] {
    const char* wrong = library.check(layout.data(), bytes);
    if (wrong && std::strcmp(wrong, "memory")) fail(std::string("a layout is refused: ") + wrong);
    return wrong != nullptr;
  });
  std::vector<float> x(5 * c.columns, 1), y(5 * c.rows), weight(c.code.size());
  std::vector<int32_t> code(c.code.size()), start(c.rows + 1), column(c.column.size());
  std::vector<uint16_t> value(c.value.size());
  starve("np_product",
         [&] { return library.product(layout.data(), x.data(), 5, kF32, nullptr, y.data(), threads) == -1; });
  starve("np_weight", [&] { return library.weight(layout.data(), kF32, weight.data(), threads) == -1; });
  starve("np_codes", [&] { return library.codes(layout.data(), code.data(), threads) == -1; });
  starve("np_outliers",
         [&] { return library.outliers(layout.data(), start.data(), column.data(), value.data()) == UINT64_MAX; });
  if (code != c.code || column != c.column || value != c.value) fail("other integers or outliers");
  const Words whole{layout, bytes};
  compare_product(library, c, whole, 5, kF32, threads, "after all");
  compare_weight(library, c, whole, "after all");
  starve_rans(library, threads);
}

void memory(const Library& library) {
  for (unsigned threads : {1u, 3u}) starve_all(library, threads);
}

}  // namespace

int main(int count, char** words) {
  const std::string mode = count == 3 ? words[2] : "";
  if (mode != "products" && mode != "memory") {
    std::fprintf(stderr, "usage: open_library LIBRARY products|memory\n");
    return 2;
  }
  const Library library(words[1]);
  if (mode == "products")
    products(library);
  else
    memory(library);
}
