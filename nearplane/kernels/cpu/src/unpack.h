#pragma once
#include <cstdint>
#include <vector>

#include "layout.h"

namespace nearplane {

// code [rows][columns] = the integers.
void unpack_codes(const View& view, int32_t* code);
// step = one, one a column, or one a row and group, as the record had them.
void unpack_steps(const View& view, float* step);
// step [rows] = those of the rows, where the layout has any.
void unpack_row_steps(const View& view, float* step);
// Row by row, columns rising; `start` has rows + 1 elements. Null pointers: only count.
uint64_t unpack_outliers(const View& view, int32_t* start, int32_t* column, uint16_t* value);
// weight [rows][columns], rounded to `type`.
void unpack_weight(const View& view, uint32_t type, void* weight);

// Where each row of the matrix is among those of the layout.
void layout_rows(const View& view, uint32_t* place);

// Some rows of the weight, of which `place` says where they are in the layout: weight[count][columns].
void unpack_rows(const View& view, const uint32_t* place, uint32_t count, uint32_t type, void* weight);

}  // namespace nearplane
