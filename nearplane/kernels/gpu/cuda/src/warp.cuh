// The machine, as the kernels see it. A host that runs them with 32 lanes on a CPU brings its own
// version of this file's second half.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef NEARPLANE_HOST
#include "simt.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define SHARED extern __shared__ uint4 shared_[]
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

DEVICE u8* shared_memory() {
    SHARED;
    return reinterpret_cast<u8*>(shared_);
}

// the low 32 bits of high:low, shifted right by the low 5 bits of `by`
DEVICE u32 funnel(u32 low, u32 high, u32 by) { return __funnelshift_r(low, high, by); }

// the upper halves of two words, `a`'s in the lower half
DEVICE u32 upper_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// a number that is the same in all lanes, and that the compiler knows to be so
DEVICE u32 of_warp(u32 value) { return __shfl_sync(~0u, value, 0); }

DEVICE u32 shuffle_up(u32 value, u32 by) {
    u32 up;
    asm volatile("shfl.sync.up.b32 %0, %1, %2, 0, -1;" : "=r"(up) : "r"(value), "r"(by));
    return up;
}
DEVICE float shuffle_xor(float value, u32 mask) { return __shfl_xor_sync(~0u, value, mask); }

// d += a · b on 16 x 8 x 16 numbers in bf16, sums in float32
DEVICE void multiply_add(float (&d)[4], const u32* a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// a · b + c of two bf16 each
DEVICE u32 fma_pairs(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// (low, high) rounded to bf16, in one word
DEVICE u32 to_bf16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE u16 to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE float from_half(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// a product that is rounded by itself, whatever is added to it
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }

DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }

// 16 bytes from global to shared memory, there after `await_copies`
DEVICE void copy_16(u8* to, const u8* from) {
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}

// waits for this thread's copies only: a barrier must follow before another reads them
DEVICE void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

DEVICE void warp_barrier() { __syncwarp(); }
DEVICE void block_barrier() { __syncthreads(); }

#endif
