// The library's plain C face, called through ctypes; the Python side checks shapes and types.
#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
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

FACE void np_set_fork(Fork fork) { set_fork(fork); }

FACE int np_available(const char* name) { return available(name); }
FACE int np_choose(const char* name) { return choose(name); }
FACE const char* np_chosen() { return kernels().name; }

// Return a handle to `size` bytes, or null where these kernels have nothing to offer.
FACE void* np_pack(const Matrix* matrix, unsigned threads, uint64_t* size) {
  try {
    set_threads(threads);
    auto bytes = std::make_unique<std::vector<uint8_t>>(pack(*matrix));
    *size = bytes->size();
    return bytes->empty() ? nullptr : bytes.release();
  } catch (const std::bad_alloc&) {
    *size = 0;
    return nullptr;
  }
}

FACE void np_take(void* handle, void* to) {
  std::unique_ptr<std::vector<uint8_t>> bytes(static_cast<std::vector<uint8_t>*>(handle));
  if (to) std::copy(bytes->begin(), bytes->end(), static_cast<uint8_t*>(to));
}

FACE const char* np_check(const void* bytes, uint64_t size) { return check(bytes, size); }

FACE void np_product(const void* bytes, const void* x, uint32_t batch, uint32_t type, const void* bias, void* y, unsigned threads) {
  set_threads(threads);
  product(View(bytes), x, batch, type, bias, y);
}

FACE void np_weight(const void* bytes, uint32_t type, void* weight, unsigned threads) {
  set_threads(threads);
  unpack_weight(View(bytes), type, weight);
}

FACE void np_codes(const void* bytes, int32_t* code, unsigned threads) {
  set_threads(threads);
  unpack_codes(View(bytes), code);
}

FACE void np_steps(const void* bytes, float* step) { unpack_steps(View(bytes), step); }

// 1 unless a stream does not end as it began, or memory is short.
FACE int np_rans(const RansBands* bands, int32_t* symbol, unsigned threads) {
  try {
    set_threads(threads);
    return decode_rans(*bands, symbol);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

FACE uint64_t np_outliers(const void* bytes, int32_t* start, int32_t* column, uint16_t* value) {
  return unpack_outliers(View(bytes), start, column, value);
}

