#pragma once
#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace nearplane {

float load(const void* from, size_t i, uint32_t type);
void load_row(const void* from, size_t first, size_t count, uint32_t type, float* to);
void store(void* to, size_t i, float value, uint32_t type);
void store_row(void* to, size_t first, const float* values, size_t count, uint32_t type);

// A product with others of the same activations: y [batch][rows] = x [batch][columns] . weights + bias [rows].
struct Product {
  const void* layout;
  const void* bias;  // or null
  void* y;
};
constexpr uint32_t kTogether = 3;  // products at once, at most

// All of one type.
void products(const Product* each, uint32_t count, const void* x, uint32_t batch, uint32_t type);

// y [batch][rows] = x [batch][columns] . weights + bias [rows], all of one type.
void product(const View& view, const void* x, uint32_t batch, uint32_t type, const void* bias, void* y);

}  // namespace nearplane
