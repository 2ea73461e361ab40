// Codes of 1 to 8 bits: words of 16 pairs of codes, a pair at the same place of both halves of a word.
#pragma once
#include "args.cuh"
#include "numbers.cuh"

constexpr u32 CHUNK_BLOCKS = 2, CHUNK_COLUMNS = 64, CHUNK_PAIRS = 16;

// a number that bf16 holds, twice in a word
constexpr u32 twice_bf16(float value) {
    u32 sign = 0, exponent = 127;
    if (value < 0) sign = 0x8000, value = -value;
    while (value >= 2) value /= 2, ++exponent;
    while (value < 1) value *= 2, --exponent;
    return (sign | exponent << 7 | u32((value - 1) * 128)) * 0x10001u;
}

constexpr u32 RAISE = 0x43004300u;  // 128 in bf16, twice

// Two codes, less OFFSET, in bf16; they are BITS bits wide and AT bits up. With 128 above them
// (`raise`) they read 128 + 2^AT · code.
template <int BITS, int AT, int OFFSET>
DEVICE u32 pair_at(u32 word, u32 raise) {
    constexpr u32 mask = (((1u << BITS) - 1) * 0x10001u) << AT;
    constexpr float back = 1.0f / (1 << AT);
    constexpr u32 factor = twice_bf16(back), less = twice_bf16(-(128 * back + OFFSET));
    return fma_pairs((word & mask) | raise, factor, less);
}

template <int BITS, int OFFSET, int I>
struct Pairs {
    static constexpr int PER_WORD = 16 / BITS, PER_SHIFT = 7 / BITS;

    // pair I of a chunk and all after it
    static DEVICE void read(const u32* words, u32 raise, u32* pairs) {
        constexpr int i = I % PER_WORD, at = i % PER_SHIFT * BITS, shift = i * BITS - at;
        if (I < BITS * PER_WORD)
            pairs[I] = pair_at<BITS, at, OFFSET>(words[I / PER_WORD] >> shift, raise);
        else
            pairs[I] = pair_at<BITS, 0, OFFSET>(left_over(words), raise);
        Pairs<BITS, OFFSET, I + 1>::read(words, raise, pairs);
    }

    // five codes of 3 bits leave one bit of each half: three words leave a pair
    static DEVICE u32 left_over(const u32* words) {
        constexpr u32 top = 0x80008000u;
        return (words[0] & top) >> 15 | (words[1] & top) >> 14 | (words[2] & top) >> 13;
    }
};

template <int BITS, int OFFSET>
struct Pairs<BITS, OFFSET, int(CHUNK_PAIRS)> {
    static DEVICE void read(const u32*, u32, u32*) {}
};

// the 32 codes of a lane in 64 columns
template <int BITS>
struct Chunk {
    static DEVICE void read(const u32* words, u32 raise, u32 (&pairs)[CHUNK_PAIRS]) {
        if (BITS <= 4) return Pairs<(BITS <= 4 ? BITS : 4), 1 << (BITS - 1), 0>::read(words, raise, pairs);
        // four low bits, then the others: 16 · high + low is exact in 8 bits
        constexpr int HIGH = BITS > 4 ? BITS - 4 : 1;
        u32 high[CHUNK_PAIRS];
        Pairs<4, 0, 0>::read(words, raise, pairs);
        Pairs<HIGH, 1 << (HIGH - 1), 0>::read(words + 4, raise, high);
        UNROLL
        for (u32 i = 0; i < CHUNK_PAIRS; ++i) {
            pairs[i] = fma_pairs(high[i], twice_bf16(16), pairs[i]);
        }
    }
};

// A tile of CHUNKS chunks: its words, as many to a load as divide them.
template <int BITS, int CHUNKS>
struct Planes {
    static constexpr u32 WORDS = BITS * CHUNKS, COLUMNS = CHUNK_COLUMNS * CHUNKS;
    static constexpr u32 AT_ONCE = WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1;

    u32 words[WORDS];

    static DEVICE const u32* of(const Args& args, u32 tile) {
        return reinterpret_cast<const u32*>(args.layout + args.at_data) + u64(tile) * (32 * WORDS);
    }

    DEVICE void load(const Args& args, u32 tile, u32 lane) {
        const u32* from = of(args, tile) + lane * AT_ONCE;
        UNROLL
        for (u32 i = 0; i < WORDS; i += AT_ONCE, from += 32 * AT_ONCE) {
            if (AT_ONCE == 4)
                *reinterpret_cast<uint4*>(words + i) = *reinterpret_cast<const uint4*>(from);
            else if (AT_ONCE == 2)
                *reinterpret_cast<uint2*>(words + i) = *reinterpret_cast<const uint2*>(from);
            else
                words[i] = *from;
        }
    }

    // one code of a tile, less its offset
    static DEVICE int code_at(const Args& args, u32 tile, u32 row, u32 column) {
        const u32 block = column / BLOCK_COLUMNS, inside = column % BLOCK_COLUMNS;
        const u32 lane = row % 8 * LANES_OF_ROW + inside / 8;
        const u32 pair = block % CHUNK_BLOCKS * BLOCK_WORDS + inside % 8 / 2 * 2 + row / 8;
        const u32 first = block / CHUNK_BLOCKS * BITS, half = column % 2;
        const u32* from = of(args, tile) + lane * AT_ONCE;
        if (BITS <= 4) return int(narrow(from, first, BITS, pair, half)) - (1 << (BITS - 1));
        const u32 high = narrow(from, first + 4, BITS - 4, pair, half);
        return int(high << 4 | narrow(from, first, 4, pair, half)) - (1 << (BITS - 1));
    }

    static DEVICE u32 narrow(const u32* from, u32 first, u32 bits, u32 pair, u32 half) {
        const u32 per_word = 16 / bits;
        if (pair >= per_word * bits) {
            const u32 at = 15 + 16 * half;
            return (word(from, first) >> at & 1) | (word(from, first + 1) >> at & 1) << 1 |
                   (word(from, first + 2) >> at & 1) << 2;
        }
        const u32 held = word(from, first + pair / per_word);
        return held >> (pair % per_word * bits + 16 * half) & ((1u << bits) - 1);
    }

    static DEVICE u32 word(const u32* from, u32 i) { return from[i / AT_ONCE * 32 * AT_ONCE + i % AT_ONCE]; }
};
