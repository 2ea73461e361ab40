// Entropy-coded integers: 32 streams of prefix-code words, one a lane, end to end in a tile's bits.
//
// An entry of the table is a number in bf16 above the length of its word. Every lane has a copy of the
// table in its own bank of shared memory: 32 lookups at once, whatever their addresses.
#pragma once
#include "args.cuh"
#include "numbers.cuh"

// bits below the window: an entry's lane and byte, which one LOP3 puts in their place
constexpr u32 BELOW = 7;
constexpr u32 LENGTHS_BYTES = 32;

constexpr u32 ROW_GROUP = 8;  // row blocks that share their code tables: a row group

struct Tile {
    u32 first;  // word of the data
    u32 least;  // bits of the shortest stream
};

template <int WINDOW>
struct Lanes {
    // words that a window holds whole
    static constexpr int AT_ONCE = (32 - BELOW) / WINDOW;
    static constexpr u32 MASK = ((1u << WINDOW) - 1) << BELOW;

    const u8* next;
    u32 low, high, used;  // two words of the stream, and the bits of `low` that are behind the window
    u32 below;            // the lane's copy of its table, from the beginning of shared memory

    // copies the code tables that fields have in a row group to the beginning of shared memory, once for every lane
    static DEVICE void spread_tables(const Args& args, u32 row_group, u32 field, u32 fields, u32 thread, u32 threads) {
        const u32* ids = reinterpret_cast<const u32*>(args.layout + args.at_field) + row_group * args.fields + field;
        const u32* tables = reinterpret_cast<const u32*>(args.layout + args.at_table);
        u32* to = reinterpret_cast<u32*>(shared_memory());
        for (u32 i = thread; i < fields << (WINDOW + 5); i += threads) {
            const u32 entry = i >> 5;
            to[i] = tables[(ids[entry >> WINDOW] << WINDOW) + entry % (1u << WINDOW)];
        }
    }

    // starts to bring a tile to shared memory, in whole 16 bytes, and returns where it begins there
    static DEVICE const u8* fetch(const Args& args, u32 tile, u8* to, u32 lane) {
        const Tile* tiles = reinterpret_cast<const Tile*>(args.layout + args.at_tile) + tile;
        const u32 begin = tiles[0].first / 4, end = (tiles[1].first + 3) / 4;
        const u8* from = args.layout + args.at_data + 16 * u64(begin);
        u8* there = to + 16 * lane;
        from += 16 * lane;
        ROLLED
        for (u32 i = lane; i < end - begin; i += 32, there += 512, from += 512) copy_16(there, from);
        return to + tiles[0].first % 4 * 4;
    }

    // the stream of a lane in a tile that is there; `field`: which of the tables it has
    DEVICE Lanes(const Args& args, u32 tile, u32 field, const u8* bytes, u32 lane) {
        const u32 length = reinterpret_cast<const Tile*>(args.layout + args.at_tile)[tile].least + bytes[lane];
        u32 end = length;
        UNROLL
        for (u32 by = 1; by < 32; by *= 2) {
            const u32 before = shuffle_up(end, by);
            if (lane >= by) end += before;
        }
        const u32 start = 8 * LENGTHS_BYTES + end - length - BELOW;
        const u32* words = reinterpret_cast<const u32*>(bytes) + start / 32;
        next = reinterpret_cast<const u8*>(words + 2);
        low = words[0], high = words[1], used = start % 32;
        below = field << (WINDOW + BELOW) | 4 * lane;
    }

    // the next 16 integers of a lane
    DEVICE void block(u32 (&pairs)[BLOCK_WORDS]) {
        u32 entry[2 * BLOCK_WORDS];
        UNROLL
        for (int first = 0; first < 2 * BLOCK_WORDS; first += AT_ONCE) {
            u32 window = funnel(low, high, used);
            UNROLL
            for (int k = first; k < first + AT_ONCE && k < 2 * BLOCK_WORDS; ++k) {
                entry[k] = *reinterpret_cast<const u32*>(shared_memory() + ((window & MASK) | below));
                // its low 5 bits are the length
                window = funnel(window, 0, entry[k]);
                used += entry[k];
            }
            refill();
        }
        UNROLL
        for (u32 i = 0; i < BLOCK_WORDS; ++i) pairs[i] = upper_halves(entry[2 * i], entry[2 * i + 1]);
    }

    // `used` has numbers above its low 16 bits, which no one reads
    DEVICE void refill() {
        if (used & 32) {
            low = high;
            high = *reinterpret_cast<const u32*>(next);
            next += 4;
        }
        used &= ~32u;
    }
};
