// Activations in shared memory: (BATCH · PARTS, stage columns) in bf16.
//
// A number of more than 8 bits is the sum of PARTS numbers in bf16, which are so many columns of a
// tensor core's product: at small batches they cost nothing.
#pragma once
#include "args.cuh"
#include "numbers.cuh"

// the layout's row -> the weight's; `rows` or more where there is none
DEVICE u32 source_row(const Args& args, u32 row) {
    if (!ORDERED || row >= args.rows) return row;
    return reinterpret_cast<const u16*>(args.layout + args.at_row)[row];
}

// the factor of a row of the weight, beside one step a column
DEVICE float row_step(const Args& args, u32 row) {
    if (!args.at_row_step) return 1.0f;
    return from_bf16(reinterpret_cast<const u16*>(args.layout + args.at_row_step)[row]);
}

// the layout's column -> the weight's; `columns` or more where there is none
DEVICE u32 source_column(const Args& args, u32 column) {
    if (ORDERED) {
        if (column >= args.columns) return ~0u;
        return reinterpret_cast<const u16*>(args.layout + args.at_source)[column];
    }
    if (args.group == args.wide_group) return column;
    const u32 group = column / args.wide_group, inside = column % args.wide_group;
    return inside < args.group ? group * args.group + inside : ~0u;
}

// bytes from one row to the next: an odd number of half lines, so that 8 rows have banks of their own
DEVICE u32 stage_stride(u32 columns) { return 2 * (columns + 32) + 64 * (columns / 32 % 2); }

template <int TYPE, int PARTS, bool COLUMN_STEPS>
struct Activations {
    static DEVICE float read(const Args& args, u32 batch, u32 column) {
        const u32 source = source_column(args, column);
        if (batch >= args.batch || source >= args.columns) return 0.0f;
        const float x = read_number<TYPE>(args.x, u64(batch) * args.columns + source);
        if (!COLUMN_STEPS) return x;
        return x * reinterpret_cast<const float*>(args.layout + args.at_step)[source];
    }

    // columns first .. first + count - 1, a multiple of 8
    template <int BATCH>
    static DEVICE void stage(const Args& args, u32 first, u32 count, u8* to, u32 thread, u32 threads) {
        const u32 stride = stage_stride(count);
        const bool as_they_are = TYPE == BFLOAT16 && PARTS == 1 && !COLUMN_STEPS && !ORDERED &&
                                 args.group == args.wide_group && args.columns % 8 == 0;
        for (u32 b = 0; b < BATCH; ++b) {
            u8* row = to + b * PARTS * stride;
            if (as_they_are) {
                for (u32 i = 8 * thread; i < count; i += 8 * threads) copy_8(args, b, first + i, row + 2 * i);
            } else {
                for (u32 i = 2 * thread; i < count; i += 2 * threads) {
                    split(read(args, b, first + i), read(args, b, first + i + 1), row + 2 * i, stride);
                }
            }
        }
    }

    static DEVICE void copy_8(const Args& args, u32 batch, u32 column, u8* to) {
        uint4 x = {0, 0, 0, 0};
        if (batch < args.batch && column < args.columns) {
            const u16* from = static_cast<const u16*>(args.x) + u64(batch) * args.columns + column;
            x = *reinterpret_cast<const uint4*>(from);
        }
        *reinterpret_cast<uint4*>(to) = x;
    }

    static DEVICE void split(float x, float y, u8* to, u32 stride) {
        UNROLL
        for (int part = 0; part < PARTS; ++part, to += stride) {
            const u32 pair = to_bf16_pair(x, y);
            *reinterpret_cast<u32*>(to) = pair;
            if (part + 1 < PARTS) x = rest(x, pair & 0xffff), y = rest(y, pair >> 16);
        }
    }

    // what is left of x; nothing of what is not finite
    static DEVICE float rest(float x, u32 bits) { return (bits & 0x7f80) == 0x7f80 ? 0.0f : x - from_bf16(bits); }
};
