// What a tile holds beside its codes: row by row, columns and values; two lanes take a row's in turn.
//
// Beside entropy-coded integers these are what an integer exceeds its table by (int16); beside planes,
// outliers (fp16).
#pragma once
#include "args.cuh"
#include "numbers.cuh"

template <class COLUMN>
struct SparseRow {
    const COLUMN* column;
    const u16* value;
    u32 begin, end;

    DEVICE SparseRow(const Args& args, u32 tile, u32 lane) {
        column = reinterpret_cast<const COLUMN*>(args.layout + args.at_column);
        value = reinterpret_cast<const u16*>(args.layout + args.at_value);
        const u32 count = (args.layout + args.at_count)[tile * ROWS + lane / 2];
        end = count;
        UNROLL
        for (u32 by = 2; by < 32; by *= 2) {
            const u32 before = shuffle_up(end, by);
            if (lane >= by) end += before;
        }
        end += reinterpret_cast<const u32*>(args.layout + args.at_first)[tile];
        begin = end - count + lane % 2;
    }
};
