#define NEARPLANE_BF16 0
#include "avx512.inc"

namespace nearplane {
constexpr Kernels avx512_kernels{"avx512",  false,  arrange,    split_plain,   decode_lanes,  decode_plane,  multiply,
                                 transpose, sparse, round_leaf, lanes_product, plane_product, tile_integers, add_tile};
}
