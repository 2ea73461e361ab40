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

// What reading rows of a layout needs to know of it, worked out once.
struct RowReader;
RowReader* row_reader(const View& view);
void free_row_reader(RowReader* reader);

// Some rows of the weight: weight[count][columns]; false, and nothing, where the matrix lacks one of them.
bool unpack_rows(const View& view, const RowReader& reader, const int64_t* index, uint32_t count, uint32_t type,
                 void* weight);

}  // namespace nearplane
