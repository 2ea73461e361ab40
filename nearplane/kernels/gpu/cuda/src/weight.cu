// The whole weight, decoded: step · code + outliers, or the codes alone.
//
// Compiled for one KIND of layout (WINDOW, or BITS and CHUNKS), the type of the result (TYPE; INT32:
// codes), STEP_TYPE, COLUMN_STEPS, SPARSE and THREADS. AS_LAID: rows and columns in the order of the
// layout, for a product whose activations and results are brought to it.
#include "activations.cuh"
#include "lanes.cuh"
#include "planes.cuh"
#include "sparse.cuh"

struct Place {
    u32 row_block, first;  // row block, and the layout's first column of a tile
    u32 shift;             // from a row of the layout to that of the result, where row groups are wanted

    DEVICE float step(const Args& args, u32 row, u32 column) const {
        if (TYPE == INT32) return 1.0f;
        const u8* steps = args.layout + args.at_step;
        if (COLUMN_STEPS) return reinterpret_cast<const float*>(steps)[source_column(args, first + column)];
#ifdef ENTROPY_CODED
        return args.scale;
#else
        const u32 group = (first + column) / args.wide_group;
        return read_number<STEP_TYPE>(steps, (u64(row_block) * args.groups + group) * ROWS + row);
#endif
    }

    // what a code is worth
    DEVICE float worth(const Args& args, u32 row, u32 column) const {
        if (TYPE == INT32 || !args.at_row_step) return step(args, row, column);
        const u32 down = source_row(args, row_block * ROWS + row);
        return down < args.rows ? row_step(args, down) * step(args, row, column) : 0.0f;
    }

    // where an element is in the result; false if it is padding
    DEVICE bool find(const Args& args, u32 row, u32 column, u64& at) const {
        const u32 across = first + column, along = row_block * ROWS + row;
        const u32 source = AS_LAID ? across : source_column(args, across);
        if (args.wanted) {
            at = u64(along + shift) * args.columns + source;
            return along < args.rows && source < args.columns;
        }
        const u32 down = AS_LAID ? along : source_row(args, along);
        at = u64(down) * args.columns + source;
        return down < args.rows && source < args.columns;
    }

    DEVICE void put(const Args& args, u32 row, u32 column, float code, float beside) const {
        u64 at;
        if (!find(args, row, column, at)) return;
        write_number<TYPE>(args.y, at, times(code, worth(args, row, column)) + beside);
    }

    // 8 neighbours, in one store
    DEVICE void put_8(const Args& args, u32 row, u32 column, const float (&codes)[8]) const {
        u64 at;
        if (!find(args, row, column, at)) return;
        u32 words[4];
        UNROLL
        for (u32 i = 0; i < 4; ++i) {
            const float low = times(codes[2 * i], worth(args, row, column + 2 * i));
            const float high = times(codes[2 * i + 1], worth(args, row, column + 2 * i + 1));
            words[i] = TYPE == FLOAT16 ? to_half(low) | u32(to_half(high)) << 16 : to_bf16_pair(low, high);
        }
        const uint4 all = {words[0], words[1], words[2], words[3]};
        *reinterpret_cast<uint4*>(static_cast<u16*>(args.y) + at) = all;
    }

    // 32 columns of all rows
    DEVICE void put_block(const Args& args, const u32* pairs, u32 column, u32 lane) const {
        UNROLL
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = row_of(lane, half), from = column + column_of(lane, 0);
            float codes[8];
            UNROLL
            for (u32 i = 0; i < 8; ++i) {
                const u32 pair = pairs[half + i / 2 * 2];
                codes[i] = from_bf16(i % 2 ? pair >> 16 : pair & 0xffff);
            }
            if (ALIGNED) {
                put_8(args, row, from, codes);
                continue;
            }
            UNROLL
            for (u32 i = 0; i < 8; ++i) put(args, row, from + i, codes[i], 0.0f);
        }
    }
};

#ifdef ENTROPY_CODED
DEVICE void decode(const Args& args, const Place& place, u32 tile, u32 lane, u32 warp) {
    u8* room = shared_memory() + (1u << (WINDOW + BELOW)) + warp * args.tile_bytes;
    const u8* bytes = Lanes<WINDOW>::fetch(args, tile, room, lane);
    await_copies();
    warp_barrier();
    Lanes<WINDOW> codes(args, tile, 0, bytes, lane);
    for (u32 column = 0; column < args.tile_columns; column += BLOCK_COLUMNS) {
        u32 pairs[BLOCK_WORDS];
        codes.block(pairs);
        place.put_block(args, pairs, column, lane);
    }
}

// an integer that its table clips
DEVICE void put_beside(const Args& args, const Place& place, u32 tile, u32 lane) {
    const SparseRow<u16> row(args, tile, lane);
    const u32 field = place.row_block / ROW_GROUP * args.fields + tile % args.tiles / args.field_tiles;
    const u32 table = reinterpret_cast<const u32*>(args.layout + args.at_field)[field];
    const int* ends = reinterpret_cast<const int*>(args.layout + args.at_table) + (args.tables << WINDOW);
    for (u32 i = row.begin; i < row.end; i += 2) {
        const int more = static_cast<short>(row.value[i]);
        place.put(args, lane / 2, row.column[i], ends[2 * table + (more > 0)] + more, 0.0f);
    }
}
#else
DEVICE void decode(const Args& args, const Place& place, u32 tile, u32 lane, u32 warp) {
    Planes<BITS, CHUNKS> codes;
    codes.load(args, tile, lane);
    UNROLL
    for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
        u32 pairs[CHUNK_PAIRS];
        Chunk<BITS>::read(codes.words + chunk * BITS, RAISE, pairs);
        place.put_block(args, pairs, chunk * CHUNK_COLUMNS, lane);
        place.put_block(args, pairs + BLOCK_WORDS, chunk * CHUNK_COLUMNS + BLOCK_COLUMNS, lane);
    }
}

// an outlier, added before it is rounded
DEVICE void put_beside(const Args& args, const Place& place, u32 tile, u32 lane) {
    if (TYPE == INT32) return;
    const SparseRow<u8> row(args, tile, lane);
    for (u32 i = row.begin; i < row.end; i += 2) {
        const u32 column = row.column[i];
        const int code = Planes<BITS, CHUNKS>::code_at(args, tile, lane / 2, column);
        place.put(args, lane / 2, column, code, from_half(row.value[i]));
    }
}
#endif

// A thread block has one tile of each row block of a row group: they share their code tables.
KERNEL(weight, THREADS, 1)(const Args args) {
    const u32 thread = threadIdx.x, warp = of_warp(thread / 32), lane = thread % 32;
    const u32 turn = blockIdx.x / args.tiles, column_tile = blockIdx.x % args.tiles;
    const u32 row_group = args.wanted ? args.wanted[turn] : turn;
#ifdef ENTROPY_CODED
    Lanes<WINDOW>::spread_tables(args, row_group, column_tile / args.field_tiles, 1, thread, THREADS);
    block_barrier();
#endif
    const u32 row_block = row_group * (THREADS / 32) + warp;
    if (row_block >= args.row_blocks) return;
    const u32 shift = (turn - row_group) * (THREADS / 32) * ROWS;
    const Place place = {row_block, column_tile * args.tile_columns, shift};
    const u32 tile = row_block * args.tiles + column_tile;
    decode(args, place, tile, lane, warp);
    if (!SPARSE) return;
    warp_barrier();
    put_beside(args, place, tile, lane);
}
