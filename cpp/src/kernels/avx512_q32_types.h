// The 32-element types as codes, for the AVX-512 and AMX files.
#pragma once

#if defined(__x86_64__)

#include "kernels/avx512.h"

namespace selm::kernels::avx512 {
namespace {

// Codes of 4 blocks: 128-bit lane i holds elements 0-15 (low) and 16-31 (high) of block i.
struct Codes {
  __m512i low, high;
};

// 16 bytes from each of 4 places.
inline __m512i load_4x16(const std::byte* p, size_t stride) {
  __m512i x = _mm512_castsi128_si512(load16(p));
  x = _mm512_inserti32x4(x, load16(p + stride), 1);
  x = _mm512_inserti32x4(x, load16(p + 2 * stride), 2);
  return _mm512_inserti32x4(x, load16(p + 3 * stride), 3);
}

inline Codes nibbles(const std::byte* p, size_t stride) {
  const __m512i x = load_4x16(p, stride), mask = _mm512_set1_epi8(15);
  return {_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi16(x, 4), mask)};
}

// 16 bits from each of 4 places.
inline __mmask64 load_4x16_bits(const std::byte* p, size_t stride) {
  const uint64_t a = load_u16(p), b = load_u16(p + stride);
  const uint64_t c = load_u16(p + 2 * stride), d = load_u16(p + 3 * stride);
  return _cvtu64_mask64((a | b << 16) | (c | d << 16) << 32);
}

inline Codes five_bits(const std::byte* bits, const std::byte* qs, size_t stride) {
  const Codes x = nibbles(qs, stride);
  const __m512i high = _mm512_set1_epi8(16);
  return {_mm512_mask_add_epi8(x.low, load_4x16_bits(bits, stride), x.low, high),
          _mm512_mask_add_epi8(x.high, load_4x16_bits(bits + 2, stride), x.high, high)};
}

// A type: bytes of a block, bits of its unsigned codes (8: signed ones plus 128), log2 of the zero point (-1:
// none), whether blocks have a minimum (the half behind the scale), and how 4 blocks become codes.
struct Q4_0 {
  static constexpr size_t kBytes = 18;
  static constexpr int kBits = 4, kZero = 3;
  static constexpr bool kMin = false;
  static Codes load4(const std::byte* p, size_t stride = kBytes) { return nibbles(p + 2, stride); }
};
struct Q4_1 {
  static constexpr size_t kBytes = 20;
  static constexpr int kBits = 4, kZero = -1;
  static constexpr bool kMin = true;
  static Codes load4(const std::byte* p, size_t stride = kBytes) { return nibbles(p + 4, stride); }
};
struct Q5_0 {
  static constexpr size_t kBytes = 22;
  static constexpr int kBits = 5, kZero = 4;
  static constexpr bool kMin = false;
  static Codes load4(const std::byte* p, size_t stride = kBytes) { return five_bits(p + 2, p + 6, stride); }
};
struct Q5_1 {
  static constexpr size_t kBytes = 24;
  static constexpr int kBits = 5, kZero = -1;
  static constexpr bool kMin = true;
  static Codes load4(const std::byte* p, size_t stride = kBytes) { return five_bits(p + 4, p + 8, stride); }
};
struct Q8_0 {
  static constexpr size_t kBytes = 34;
  static constexpr int kBits = 8, kZero = 7;
  static constexpr bool kMin = false;
  static Codes load4(const std::byte* p, size_t stride = kBytes) {
    const __m512i flip = _mm512_set1_epi8(-128);
    return {_mm512_xor_si512(load_4x16(p + 2, stride), flip),
            _mm512_xor_si512(load_4x16(p + 18, stride), flip)};
  }
};
struct Iq4Nl {
  static constexpr size_t kBytes = 18;
  static constexpr int kBits = 8, kZero = 7;
  static constexpr bool kMin = false;
  static Codes load4(const std::byte* p, size_t stride = kBytes) {
    const Codes x = nibbles(p + 2, stride);
    const __m512i values = _mm512_broadcast_i32x4(  // quant::kIq4Values + 128
        _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15));
    return {_mm512_shuffle_epi8(values, x.low), _mm512_shuffle_epi8(values, x.high)};
  }
};

// As load4 where only `blocks` < 4 are left; never reads past them.
template <class T>
inline Codes load_rest(const std::byte* p, size_t blocks) {
  alignas(64) std::byte copy[4 * T::kBytes] = {};
  __builtin_memcpy(copy, p, blocks * T::kBytes);
  return T::load4(copy);
}

}  // namespace
}  // namespace selm::kernels::avx512

#endif
