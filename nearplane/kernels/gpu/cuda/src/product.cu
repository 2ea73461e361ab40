// y = x · weightᵀ + bias for a few rows of x.
//
// A warp has 16 rows of the weight; the warps of a thread block share activations, and `splits` of
// them the columns of one row block, whose sums are added in the end, always in the same order.
//
// Compiled for one KIND of layout (WINDOW, or BITS and CHUNKS), one type of activations (TYPE, PARTS,
// COLUMN_STEPS), BATCH rows of them, and THREADS. SPARSE: whether tiles have sparse entries.
#include "activations.cuh"
#include "lanes.cuh"
#include "planes.cuh"
#include "sparse.cuh"

constexpr u32 N = BATCH * PARTS, N_TILES = (N + 7) / 8;
// thread blocks that a multiprocessor shall hold: 24 warps, if sums leave room for their registers
constexpr int AT_LEAST = N <= 8 ? 3 : N <= 16 ? 2 : 1;
using X = Activations<TYPE, PARTS, COLUMN_STEPS>;

#ifdef ENTROPY_CODED
using SparseColumn = u16;
#else
using SparseColumn = u8;
#endif

// Where a lane finds what it gives to a tensor core of the activations: 16 bytes for 32 columns.
struct Lookout {
    const u8* at[N_TILES];

    DEVICE Lookout(const u8* x, u32 stride, u32 lane) {
        UNROLL
        for (u32 t = 0; t < N_TILES; ++t) {
            // a lane that has no row of its own gives the first one's to sums that no one reads
            const u32 n = 8 * t + lane / LANES_OF_ROW;
            at[t] = x + (n < N ? n : 0) * stride + 16 * (lane % LANES_OF_ROW);
        }
    }

    DEVICE uint4 next(u32 t) {
        const uint4 x = *reinterpret_cast<const uint4*>(at[t]);
        at[t] += 2 * BLOCK_COLUMNS;
        return x;
    }
};

struct Warp {
    u32 lane, row_block;
    float sum[N_TILES][4];  // a tensor core's: rows g and g + 8, columns 2q and 2q + 1 of x
    float beside[N];        // of the sparse entries of row lane / 2

    static DEVICE void clear(float (&sums)[N_TILES][4]) {
        UNROLL
        for (u32 t = 0; t < N_TILES; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0.0f;
    }

    static DEVICE void add_block(float (&sums)[N_TILES][4], const u32* pairs, Lookout& x) {
        UNROLL
        for (u32 t = 0; t < N_TILES; ++t) {
            const uint4 b = x.next(t);
            multiply_add(sums[t], pairs, b.x, b.y);
            multiply_add(sums[t], pairs + 4, b.z, b.w);
        }
    }

    DEVICE void add_beside(const Args& args, u32 tile, const u8* x, u32 stride) {
        const SparseRow<SparseColumn> row(args, tile, lane);
        ROLLED
        for (u32 i = row.begin; i < row.end; i += 2) {
#ifdef ENTROPY_CODED
            const float value = static_cast<short>(row.value[i]);
#else
            const float value = from_half(row.value[i]);
#endif
            const u8* at = x + 2 * row.column[i];
            UNROLL
            for (u32 n = 0; n < N; ++n, at += stride) {
                beside[n] += value * from_bf16(*reinterpret_cast<const u16*>(at));
            }
        }
    }

#ifdef ENTROPY_CODED
    DEVICE void add_tile(const Args& args, u32 column_tile, const u8* bytes, Lookout x) {
        Lanes<WINDOW> codes(args, row_block * args.tiles + column_tile, column_tile / args.field_tiles, bytes, lane);
        for (u32 left = args.tile_columns / BLOCK_COLUMNS; left; --left) {
            u32 pairs[BLOCK_WORDS];
            codes.block(pairs);
            add_block(sum, pairs, x);
        }
    }
#else
    static constexpr u32 BLOCKS = CHUNKS * CHUNK_BLOCKS;
    // whether groups begin and end with tiles
    static constexpr bool EVEN = GROUP_BLOCKS && BLOCKS % (GROUP_BLOCKS ? GROUP_BLOCKS : 1) == 0;

    DEVICE void add_tile(const Args& args, u32 column_tile, u32 raise, Lookout x) {
        Planes<BITS, CHUNKS> codes;
        codes.load(args, row_block * args.tiles + column_tile, lane);
        const u32 blocks = EVEN ? GROUP_BLOCKS : args.wide_group / BLOCK_COLUMNS;
        const u32 first = column_tile * BLOCKS;
        u32 left = EVEN ? blocks : blocks - first % blocks;
        u64 step = (u64(row_block) * args.groups + first / blocks) * ROWS + lane / LANES_OF_ROW;
        float group[N_TILES][4];
        clear(group);
        UNROLL
        for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
            u32 pairs[CHUNK_PAIRS];
            Chunk<BITS>::read(codes.words + chunk * BITS, raise, pairs);
            UNROLL
            for (u32 block = 0; block < CHUNK_BLOCKS; ++block) {
                add_block(group, pairs + block * BLOCK_WORDS, x);
                if (--left != 0 && chunk * CHUNK_BLOCKS + block + 1 != BLOCKS) continue;
                add_group(args, group, step);
                step += ROWS, left = blocks;
            }
        }
    }

    // the sums of a group, times its steps
    DEVICE void add_group(const Args& args, float (&group)[N_TILES][4], u64 step) {
        float low = 1.0f, high = 1.0f;
        if (!COLUMN_STEPS) {
            low = read_number<STEP_TYPE>(args.layout + args.at_step, step);
            high = read_number<STEP_TYPE>(args.layout + args.at_step, step + 8);
        }
        UNROLL
        for (u32 t = 0; t < N_TILES; ++t) {
            sum[t][0] += low * group[t][0], sum[t][1] += low * group[t][1];
            sum[t][2] += high * group[t][2], sum[t][3] += high * group[t][3];
        }
        clear(group);
    }
#endif

    // the warp's sums as (N, 16)
    DEVICE void write(float* to) {
        UNROLL
        for (u32 i = 0; i < 4 * N_TILES; ++i) {
            const u32 n = i / 4 * 8 + lane % LANES_OF_ROW * 2 + i % 2;
            const u32 row = lane / LANES_OF_ROW + i % 4 / 2 * 8;
            if (n < N) to[n * ROWS + row] = sum[i / 4][i % 4];
        }
        if (!SPARSE) return;
        warp_barrier();
        UNROLL
        for (u32 n = 0; n < N; ++n) {
            const float both = beside[n] + shuffle_xor(beside[n], 1);
            if (lane % 2 == 0) to[n * ROWS + lane / 2] += both;
        }
    }
};

// y of a row block: its warps' sums, then the parts of x
DEVICE void write_results(const Args& args, const float* sums, u32 blocks) {
    for (u32 i = threadIdx.x; i < blocks * ROWS * args.batch; i += THREADS) {
        const u32 b = i / (blocks * ROWS), block = i / ROWS % blocks, row = i % ROWS;
        const u32 place = source_row(args, (blockIdx.x * blocks + block) * ROWS + row);
        if (place >= args.rows) continue;
        float total = 0.0f;
        for (u32 split = 0; split < args.splits; ++split) {
            const float* of_warp = sums + (block * args.splits + split) * (N * ROWS);
            for (u32 part = 0; part < PARTS; ++part) total += of_warp[(b * PARTS + part) * ROWS + row];
        }
        total *= args.scale * row_step(args, place);
        if (args.bias) total += read_number<TYPE>(args.bias, place);
        write_number<TYPE>(args.y, u64(b) * args.rows + place, total);
    }
}

// Shared memory: tables and the warps' tiles, if integers are coded; activations; RAISE. In the end
// the warps' sums take its place.
KERNEL(product, THREADS, AT_LEAST)(const Args args) {
    const u32 thread = threadIdx.x, warp = of_warp(thread / 32), blocks = THREADS / 32 / args.splits;
    const u32 split = warp % args.splits;
    Warp mine;
    mine.lane = thread % 32, mine.row_block = blockIdx.x * blocks + warp / args.splits;
    Warp::clear(mine.sum);
    UNROLL
    for (u32 n = 0; n < N; ++n) mine.beside[n] = 0.0f;

    u8* staged = shared_memory();
#ifdef ENTROPY_CODED
    const u32 row_group = blockIdx.x * blocks / ROW_GROUP;
    Lanes<WINDOW>::spread_tables(args, row_group, 0, args.fields, thread, THREADS);
    staged += args.fields << (WINDOW + BELOW);
    u8* room = staged + warp * args.tile_bytes;
    staged += THREADS / 32 * args.tile_bytes;
#endif
    const u32 columns = args.stage * args.splits * args.tile_columns, stride = stage_stride(columns);
    // from memory: a compiler that knows it takes two LOP3 for a mask and this
    u32* raise = reinterpret_cast<u32*>(staged + N * stride);
    if (thread == 0) *raise = RAISE;

    for (u32 first = 0; first < args.passes; first += args.stage) {
        block_barrier();  // the last stage was read
        X::stage<BATCH>(args, first * args.splits * args.tile_columns, columns, staged, thread, THREADS);
        block_barrier();
        const u8* x = staged + 2 * split * args.tile_columns;
        u32 column_tile = first * args.splits + split;
        for (u32 pass = 0; pass < args.stage; ++pass) {
            if (mine.row_block >= args.row_blocks || column_tile >= args.tiles) break;
            const Lookout lookout(x, stride, mine.lane);
            const u32 tile = mine.row_block * args.tiles + column_tile;
#ifdef ENTROPY_CODED
            const u8* bytes = Lanes<WINDOW>::fetch(args, tile, room, mine.lane);
            await_copies();
            warp_barrier();
            mine.add_tile(args, column_tile, bytes, lookout);
            warp_barrier();  // the tile was read
#else
            mine.add_tile(args, column_tile, *raise, lookout);
#endif
            if (SPARSE) mine.add_beside(args, tile, x, stride);
            x += 2 * args.splits * args.tile_columns, column_tile += args.splits;
        }
    }
    block_barrier();
    float* sums = reinterpret_cast<float*>(shared_memory());
    mine.write(sums + warp * (N * ROWS));
    block_barrier();
    write_results(args, sums, blocks);
}
