#define NEARPLANE_BF16 1
#include "avx512.inc"

namespace nearplane {
constexpr Kernels avx512_bf16_kernels{"avx512_bf16", true,          arrange,       split,   decode_lanes,
                                      decode_plane,  multiply,      transpose,     sparse,  round_leaf,
                                      lanes_product, plane_product, tile_integers, add_tile};
}
