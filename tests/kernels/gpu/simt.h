// A GPU's thread block on one CPU thread: what warp.cuh needs to run the kernels here.
//
// Every thread is a coroutine that runs until a barrier or an exchange makes it wait. Shared memory
// begins as NaN, copies to it arrive no sooner than they are waited for, a warp runs until the whole
// block must meet, and threads go in either order: a kernel that forgets a barrier or a wait gives
// other results.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct Index {
    u32 x;
};

namespace simt {

struct Barrier {
    u32 arrived = 0, generation = 0;
};

struct Exchange {
    u32 words[2][32][6];
    Barrier barrier;
};

struct Copy {
    u8 *to;
    const u8 *from;
};

struct Thread {
    ucontext_t context;
    std::vector<u8> stack;
    std::vector<Copy> copies;
    u32 exchanges = 0;
    bool done = false, at_block_barrier = false;
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Exchange> warps;
    std::vector<u8> shared;
    Barrier barrier;
    ucontext_t main;
    u32 now = 0;
};

inline Block *block = nullptr;
inline u32 block_index = 0;

inline Thread &self() { return block->threads[block->now]; }

inline void yield() { swapcontext(&self().context, &block->main); }

inline void wait(Barrier &barrier, u32 members) {
    const u32 generation = barrier.generation;
    if (++barrier.arrived == members) {
        barrier.arrived = 0, ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) yield();
}

// gives `count` words to the warp and returns where all lanes' words lie
inline const u32 (*exchange(const u32 *words, u32 count))[6] {
    Exchange &warp = block->warps[block->now / 32];
    u32(*slots)[6] = warp.words[self().exchanges++ % 2];
    std::memcpy(slots[block->now % 32], words, 4 * count);
    wait(warp.barrier, 32);
    return slots;
}

inline float as_float(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline u32 bits_of(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bf16(u32 bits) { return as_float(bits << 16); }

// to nearest, ties to even; a NaN stays one
inline u32 to_bf16(float value) {
    const u32 bits = bits_of(value);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace simt

#define threadIdx (Index{simt::block->now})
#define blockIdx (Index{simt::block_index})
#define DEVICE inline
#define KERNEL(name, threads, blocks) static void kernel
#define UNROLL
#define ROLLED

DEVICE u8 *shared_memory() { return simt::block->shared.data(); }

DEVICE u32 funnel(u32 low, u32 high, u32 by) {
    return static_cast<u32>(((u64(high) << 32) | low) >> (by & 31));
}

DEVICE u32 upper_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }

DEVICE u32 of_warp(u32 value) { return value; }

DEVICE u32 shuffle_up(u32 value, u32 by) {
    const u32 lane = simt::block->now % 32;
    const auto all = simt::exchange(&value, 1);
    return lane >= by ? all[lane - by][0] : value;
}

DEVICE float shuffle_xor(float value, u32 mask) {
    const u32 bits = simt::bits_of(value), lane = simt::block->now % 32;
    return simt::as_float(simt::exchange(&bits, 1)[lane ^ mask][0]);
}

DEVICE void multiply_add(float (&d)[4], const u32 *a, u32 b0, u32 b1) {
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1}, lane = simt::block->now % 32;
    const auto all = simt::exchange(mine, 6);
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = lane / 4, half = i / 2, n = lane % 4 * 2 + i % 2;
        double sum = 0;
        for (u32 k = 0; k < 16; ++k) {
            const u32 q = k % 8 / 2, shift = k % 2 * 16;
            const u32 left = all[row * 4 + q][half + k / 8 * 2] >> shift & 0xffff;
            const u32 right = all[n * 4 + q][4 + k / 8] >> shift & 0xffff;
            sum += double(simt::from_bf16(left)) * simt::from_bf16(right);
        }
        d[i] = static_cast<float>(d[i] + sum);
    }
}

DEVICE u32 to_bf16_pair(float low, float high) {
    return simt::to_bf16(low) | simt::to_bf16(high) << 16;
}

DEVICE u32 fma_pairs(u32 a, u32 b, u32 c) {
    const auto one = [](u32 x, u32 y, u32 z) {
        return float(double(simt::from_bf16(x)) * simt::from_bf16(y) + simt::from_bf16(z));
    };
    const float low = one(a & 0xffff, b & 0xffff, c & 0xffff);
    return to_bf16_pair(low, one(a >> 16, b >> 16, c >> 16));
}

DEVICE u16 to_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    u16 bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

DEVICE float from_half(u16 bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return half;
}

DEVICE float times(float a, float b) { return a * b; }
DEVICE float as_float(u32 bits) { return simt::as_float(bits); }

DEVICE void copy_16(u8 *to, const u8 *from) { simt::self().copies.push_back({to, from}); }

DEVICE void await_copies() {
    for (const simt::Copy &copy : simt::self().copies) std::memcpy(copy.to, copy.from, 16);
    simt::self().copies.clear();
}

DEVICE void warp_barrier() {
    const u32 nothing = 0;
    simt::exchange(&nothing, 1);
}

DEVICE void block_barrier() {
    simt::self().at_block_barrier = true;
    simt::wait(simt::block->barrier, static_cast<u32>(simt::block->threads.size()));
    simt::self().at_block_barrier = false;
}
