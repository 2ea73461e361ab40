#pragma once
#include <cstddef>

namespace nearplane {

// Return what is wrong with the bytes of a layout, or null: then no kernel reads or writes outside of them.
const char* check(const void* bytes, size_t size);

}  // namespace nearplane
