// float16 in portable C++, where no instruction converts it. Of internal linkage: this is compiled for several
// instruction sets, and the linker must not take one's code for another's.
#pragma once
#include <cstdint>
#include <cstring>

namespace stair {
namespace {

// Subnormals by value, the rest by moving the exponent: 112 = 127 - 15.
inline float decode_half(uint16_t bits) {
  uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff, wide;
  if (magnitude < 0x400) {
    float value = float(magnitude) * 5.9604644775390625e-08f;  // 2^-24
    std::memcpy(&wide, &value, 4);
  } else {
    wide = (magnitude << 13) + (112u << 23);
    if (magnitude >= 0x7c00) wide += 112u << 23;  // infinity and NaN
  }
  wide |= sign;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t encode_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {                                 // below 2^-14: a multiple of 2^-24
    float shifted;  // adding 2^-1 puts the unit of the last place at 2^-24, and rounds
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    std::memcpy(&magnitude, &shifted, 4);
    return uint16_t(sign | (magnitude - 0x3f000000));
  }
  uint32_t rebiased = magnitude - (112u << 23);
  return uint16_t(sign | ((rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13));
}

}  // namespace
}  // namespace stair
