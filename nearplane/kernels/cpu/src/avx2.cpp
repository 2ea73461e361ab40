#include "avx2.inc"

namespace nearplane {
constexpr Kernels avx2_kernels{"avx2",    false,  arrange_plain, split_plain,   decode_lanes,  decode_plane,  multiply,
                               transpose, sparse, round_leaf,    lanes_product, plane_product, tile_integers, add_tile};
}
