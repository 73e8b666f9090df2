// The activations. Nothing here may use the standard library: simd/kernels.h includes it.
#pragma once

namespace stair {

enum class Activation { kLogRelu, kRelu, kLogLogRelu, kElu1p };

}  // namespace stair
