// ARM with dot products of bytes: tiles; all else is plain C++.
#include <arm_neon.h>

#include "kernels.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize( \
    "no-schedule-insns")  // which loads so much ahead that registers run out: a fifth more instructions
#endif

namespace nearplane {

namespace {

// Codes of unit K of two rows, `at` bytes into the words: 4 bits at the bottom, then 2, then 1.
template <int B, int K>
inline int8x16_t unit_codes(const uint8_t* half, int at) {
  uint8x16_t codes = vdupq_n_u8(0);
  if constexpr (B & 4) {
    const uint8x16_t w = vld1q_u8(half + 64 * (K / 2) + at);
    codes = K % 2 ? vshrq_n_u8(w, 4) : vandq_u8(w, vdupq_n_u8(15));
  }
  if constexpr (B & 2) {
    constexpr int kTo = B & 4, kFrom = K % 4 * 2;
    const uint8x16_t w = vld1q_u8(half + 64 * ((B & 4) + K / 4) + at);
    uint8x16_t moved = w;
    if constexpr (kFrom > kTo) moved = vshrq_n_u8(w, kFrom - kTo);
    if constexpr (kFrom < kTo) moved = vshlq_n_u8(w, kTo - kFrom);
    if constexpr (kTo)
      codes = vbslq_u8(vdupq_n_u8(3 << kTo), moved, codes);
    else
      codes = kFrom == 6 ? moved : vandq_u8(moved, vdupq_n_u8(3));
  }
  if constexpr (B & 1) {
    constexpr int kTo = B & 6;
    const uint8x16_t w = vld1q_u8(half + 64 * ((B & 4) + (B & 2)) + at);
    uint8x16_t moved = w;
    if constexpr (K > kTo) moved = vshrq_n_u8(w, K - kTo);
    if constexpr (K < kTo) moved = vshlq_n_u8(w, kTo - K);
    if constexpr (kTo)
      codes = vbslq_u8(vdupq_n_u8(1 << kTo), moved, codes);
    else
      codes = vandq_u8(moved, vdupq_n_u8(1));
  }
  return vreinterpretq_s8_u8(codes);
}

// Low: whether activations have low parts.
template <int B, bool Low, int K>
struct Unit {
  // top and bottom: sums of 4 places of two rows each, of the 8 rows of a half
  static INLINE void add(const uint8_t* half, const int8_t* high, const int8_t* low, int32x4_t* top,
                         int32x4_t* bottom) {
    // loads of one element need no alignment
    const int8x16_t xh = vreinterpretq_s8_s64(vld1q_dup_s64(reinterpret_cast<const int64_t*>(high + kUnit * K)));
    int8x16_t xl = xh;
    if (Low) xl = vreinterpretq_s8_s64(vld1q_dup_s64(reinterpret_cast<const int64_t*>(low + kUnit * K)));
    for (int q = 0; q < 4; q++) {
      const int8x16_t codes = unit_codes<B, K>(half, 16 * q);
      top[q] = vdotq_s32(top[q], codes, xh);
      if (Low) bottom[q] = vdotq_s32(bottom[q], codes, xl);
    }
    if constexpr (K + 1 < kUnits) Unit<B, Low, K + 1>::add(half, high, low, top, bottom);
  }
};

// Sums of the 8 rows of half `half`.
template <int B, bool Low>
void bit_sums(const Tiles& tile, const TileInputs& x, int half, int32_t* rows) {
  int32x4_t top[4], bottom[4];
  for (int q = 0; q < 4; q++) top[q] = bottom[q] = vdupq_n_s32(0);
  const uint8_t* at = tile.bytes + half * B * 64;
  for (uint32_t p = tile.first; p < tile.first + tile.places; p += kTileChunk, at += 2 * B * 64)
    Unit<B, Low, 0>::add(at, x.high + p, Low ? x.low + p : nullptr, top, bottom);
  int32x4_t sum[4];
  for (int q = 0; q < 4; q++) sum[q] = Low ? vaddq_s32(vshlq_n_s32(top[q], 7), bottom[q]) : top[q];
  vst1q_s32(rows, vpaddq_s32(sum[0], sum[1]));
  vst1q_s32(rows + 4, vpaddq_s32(sum[2], sum[3]));
}

template <bool Low>
bool sums_of(const Tiles& tile, const TileInputs& x, int half, int32_t* rows) {
  switch (tile.kind & 15) {
    case 1:
      bit_sums<1, Low>(tile, x, half, rows);
      return true;
    case 2:
      bit_sums<2, Low>(tile, x, half, rows);
      return true;
    case 3:
      bit_sums<3, Low>(tile, x, half, rows);
      return true;
    case 4:
      bit_sums<4, Low>(tile, x, half, rows);
      return true;
    case 5:
      bit_sums<5, Low>(tile, x, half, rows);
      return true;
    case 6:
      bit_sums<6, Low>(tile, x, half, rows);
      return true;
    case 7:
      bit_sums<7, Low>(tile, x, half, rows);
      return true;
  }
  return false;
}

// 4 of the steps of a tile's rows.
INLINE float32x4_t load_steps(const Tiles& tile, int first) {
  if (tile.step_type == kF32) return vld1q_f32(reinterpret_cast<const float*>(tile.steps) + first);
  const uint16x4_t half = vld1_u16(reinterpret_cast<const uint16_t*>(tile.steps) + first);
  if (tile.step_type == kF16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
  return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

// Products and sums are rounded one by one, as on all instruction sets.
void add_tile(const Tiles& tile, const TileInputs* x, uint32_t batch, float* acc, int stride) {
  for (uint32_t b = 0; b < batch; b++, acc += stride)
    for (int half = 0; half < 2; half++) {
      int32_t rows[kHalfRows];
      if (!(x[b].low ? sums_of<true> : sums_of<false>)(tile, x[b], half, rows))
        return plain_kernels.add_tile(tile, x + b, batch - b, acc, stride);
      const int32x4_t rest = vdupq_n_s32(tile_low(tile.kind) * x[b].sum[tile.number]);
      const float32x4_t scale = vdupq_n_f32(x[b].scale[tile.number]);
      for (int q = 0; q < 2; q++) {
        float* to = acc + 8 * half + 4 * q;
        const float32x4_t factor = vmulq_f32(scale, load_steps(tile, 8 * half + 4 * q));
        const float32x4_t sum = vcvtq_f32_s32(vaddq_s32(vld1q_s32(rows + 4 * q), rest));
        vst1q_f32(to, vaddq_f32(vld1q_f32(to), vmulq_f32(factor, sum)));
      }
    }
}

void tile_integers(const float* place, uint32_t count, int8_t* high, int8_t* low, float* scale, int32_t* sum) {
  tile_inputs(place, count, high, low, scale, sum);
}

Kernels with_tiles() {
  Kernels kernels = plain_kernels;
  kernels.name = "neon_dot";
  kernels.tile_inputs = tile_integers;
  kernels.add_tile = add_tile;
  return kernels;
}

}  // namespace

const Kernels neon_dot_kernels = with_tiles();

}  // namespace nearplane
