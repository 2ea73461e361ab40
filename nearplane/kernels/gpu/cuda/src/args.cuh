// What the host tells a kernel: shapes, how the work is cut, and where the parts of a layout lie.
#pragma once
#include "warp.cuh"

struct Args {
    const u8* layout;
    const void* x;      // (batch, columns)
    void* y;            // (batch, rows); of `weight`: (rows, columns)
    const void* bias;   // (rows) or null
    const u32* wanted;  // of `weight`: the row groups to decode, whose rows follow each other in y; null for all
    u64 at_tile, at_data, at_table, at_field, at_row, at_source, at_step, at_row_step;
    u64 at_first, at_count, at_column, at_value;
    u32 rows, columns, batch;
    u32 row_blocks;  // of 16 rows
    u32 tiles;       // of 16 rows x tile_columns, in a row block
    u32 tile_columns, tile_bytes;
    u32 splits;             // tiles of one row block that the warps of a thread block share
    u32 passes;             // tiles that one warp takes
    u32 stage;              // passes whose activations are in shared memory at a time
    u32 group, wide_group;  // columns of a group, and with its padding
    u32 groups;             // steps of a row
    u32 tables, fields;     // code tables of the lanes: of the weight, and of one row group
    u32 field_tiles;        // tiles that share a code
    float scale;
};
