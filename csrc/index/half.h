// float16 in portable C++: exact both ways for numbers that float16 has.
#pragma once

#include <cstdint>
#include <cstring>

namespace stair {

inline float half_to_float(uint16_t half) {
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
  uint32_t bits = static_cast<uint32_t>(half >> 15) << 31;
  if (exponent == 31) {
    bits |= 0x7f800000u | mantissa << 13;
  } else if (exponent != 0) {
    bits |= (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return bits == 0 ? value : -value;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Of a number > 0 that float16 has.
inline uint16_t half_of(float value) {
  if (value < 0x1p-14f) return static_cast<uint16_t>(value * 0x1p24f);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits >> 13) - (112u << 10));
}

}  // namespace stair
