// The inner loops, written once with GCC vector types and compiled once per instruction set (STAIR_ISA names it).
#include "cpu/simd/activation.h"
#include "cpu/simd/matmul.h"
#include "cpu/simd/pack.h"
#include "cpu/simd/pool.h"
#include "cpu/simd/scatter.h"
#include "cpu/simd/select.h"

namespace stair::STAIR_ISA {

#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

#define STAIR_STRING_(x) #x
#define STAIR_STRING(x) STAIR_STRING_(x)

extern const SimdKernels kernels = {STAIR_STRING(STAIR_ISA),
                                    kPairs,
                                    tile_size,
                                    load_row,
                                    place_row,
                                    pack_block,
                                    widen_block,
                                    pool_block,
                                    bound_of_kth,
                                    kth_largest,
                                    collect_above,
                                    sort_descending,
                                    apply<activate_vec>,
                                    apply<slope_vec>,
                                    scatter,
                                    dots,
                                    narrow};

}  // namespace stair::STAIR_ISA
