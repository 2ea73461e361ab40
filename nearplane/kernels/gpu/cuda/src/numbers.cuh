// Numbers of 16 bits, and where an element of a tile lies.
#pragma once
#include "warp.cuh"

enum Type { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT32 = 3 };

DEVICE float from_bf16(u32 bits) { return as_float(bits << 16); }

template <int TYPE>
DEVICE float read_number(const void* from, u64 at) {
    if (TYPE == FLOAT32) return static_cast<const float*>(from)[at];
    const u16 bits = static_cast<const u16*>(from)[at];
    return TYPE == FLOAT16 ? from_half(bits) : from_bf16(bits);
}

template <int TYPE>
DEVICE void write_number(void* to, u64 at, float value) {
    if (TYPE == FLOAT32)
        static_cast<float*>(to)[at] = value;
    else if (TYPE == INT32)
        static_cast<int*>(to)[at] = static_cast<int>(value);
    else
        static_cast<u16*>(to)[at] = TYPE == FLOAT16 ? to_half(value) : static_cast<u16>(to_bf16_pair(value, 0.0f));
}

// A tensor core takes 16 rows x 16 columns, 8 numbers a lane in 4 words. Two of them make a block of
// 32 columns; lane 4g + q has rows g and g + 8, columns 8q .. 8q + 7: word w of 8 holds row
// g + 8 (w & 1) and columns 8q + 2 (w >> 1) + {0, 1}, so that a lane's activations are 16 bytes.
constexpr u32 ROWS = 16, BLOCK_COLUMNS = 32, BLOCK_WORDS = 8, LANES_OF_ROW = 4;

DEVICE u32 row_of(u32 lane, u32 word) { return lane / LANES_OF_ROW + 8 * (word & 1); }
DEVICE u32 column_of(u32 lane, u32 word) { return 8 * (lane % LANES_OF_ROW) + 2 * (word >> 1); }
