// The library's plain C face, called through ctypes; the Python side checks shapes and types.
// No std::bad_alloc leaves a function: nothing could catch it there.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
#include "fused.h"
#include "kernels.h"
#include "pack.h"
#include "parallel.h"
#include "product.h"
#include "rans.h"
#include "unpack.h"

#if defined(_WIN32)
#define FACE extern "C" __declspec(dllexport)
#else
#define FACE extern "C" __attribute__((visibility("default")))
#endif

using namespace nearplane;

// What functions return where memory is short; library.py knows it too.
constexpr int kShort = -1;

// call(), or `otherwise` where memory is short.
template <class Result, class Call>
static Result guarded(Result otherwise, const Call& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return otherwise;
  }
}

// Return 0, or kShort.
template <class Call>
static int done(unsigned threads, const Call& call) {
  return guarded(kShort, [&] {
    set_threads(threads);
    call();
    return 0;
  });
}

FACE void np_set_fork(Fork fork) { set_fork(fork); }

FACE int np_available(const char* name) { return available(name); }
FACE const char* np_name(unsigned place) { return name(place); }
FACE int np_choose(const char* name) { return choose(name); }
FACE const char* np_chosen() { return kernels().name; }

// Return a handle to `size` bytes, or null where these kernels have nothing to offer, or memory is short.
FACE void* np_pack(const Matrix* matrix, unsigned threads, uint64_t* size) {
  *size = 0;
  return guarded<void*>(nullptr, [&]() -> void* {
    set_threads(threads);
    auto bytes = std::make_unique<std::vector<uint8_t>>(pack(*matrix));
    *size = bytes->size();
    return bytes->empty() ? nullptr : bytes.release();
  });
}

FACE void np_take(void* handle, void* to) {
  std::unique_ptr<std::vector<uint8_t>> bytes(static_cast<std::vector<uint8_t>*>(handle));
  if (to) std::copy(bytes->begin(), bytes->end(), static_cast<uint8_t*>(to));
}

// Null, what is wrong, or "memory".
FACE const char* np_check(const void* bytes, uint64_t size) {
  return guarded<const char*>("memory", [&] { return check(bytes, size); });
}

FACE int np_product(const void* bytes, const void* x, uint32_t batch, uint32_t type, const void* bias, void* y,
                    unsigned threads) {
  return done(threads, [&] { product(View(bytes), x, batch, type, bias, y); });
}

FACE int np_attention_inputs(const DecoderBlock* block, const void* x, const void* cosine, const void* sine, void* q,
                             void* k, void* v, unsigned threads) {
  return done(threads, [&] { attention_inputs(*block, x, cosine, sine, q, k, v); });
}

FACE int np_after_attention(const DecoderBlock* block, const void* x, const void* attended, void* y, unsigned threads) {
  return done(threads, [&] { after_attention(*block, x, attended, y); });
}

FACE int np_weight(const void* bytes, uint32_t type, void* weight, unsigned threads) {
  return done(threads, [&] { unpack_weight(View(bytes), type, weight); });
}

// What np_rows needs to know of a layout, or null where memory is short.
FACE void* np_row_reader(const void* bytes) {
  return guarded<void*>(nullptr, [&] { return row_reader(View(bytes)); });
}

FACE void np_free_row_reader(void* reader) { free_row_reader(static_cast<RowReader*>(reader)); }

// 1, 0 where the matrix lacks a row, or kShort.
FACE int np_rows(const void* bytes, const void* reader, const int64_t* index, uint32_t count, uint32_t type,
                 void* weight, unsigned threads) {
  return guarded(kShort, [&]() -> int {
    set_threads(threads);
    return unpack_rows(View(bytes), *static_cast<const RowReader*>(reader), index, count, type, weight);
  });
}

FACE int np_codes(const void* bytes, int32_t* code, unsigned threads) {
  return done(threads, [&] { unpack_codes(View(bytes), code); });
}

// On one thread: a leaf takes less time than threads take to meet.
FACE void np_leaf(const Leaf* leaf) { kernels().round_leaf(*leaf, 0, leaf->rows); }

FACE void np_row_steps(const void* bytes, float* step) { unpack_row_steps(View(bytes), step); }

FACE void np_steps(const void* bytes, float* step) { unpack_steps(View(bytes), step); }

// 1, 0 where a stream does not end as it began, or kShort.
FACE int np_rans(const RansBands* bands, int32_t* symbol, unsigned threads) {
  return guarded(kShort, [&]() -> int {
    set_threads(threads);
    return decode_rans(*bands, symbol);
  });
}

// How many there are, or uint64_t(kShort).
FACE uint64_t np_outliers(const void* bytes, int32_t* start, int32_t* column, uint16_t* value) {
  return guarded(uint64_t(kShort), [&] { return unpack_outliers(View(bytes), start, column, value); });
}
