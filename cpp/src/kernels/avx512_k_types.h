// The 256-element types as AVX-512 sees them: codes, scales and minima of a block.
#pragma once

#if defined(__x86_64__)

#include "kernels/avx512.h"

namespace selm::kernels::avx512 {
namespace {

// Per group of 16: the scale, and the minimum or the zero point times the scale.
struct Scales {
  __m256i scale, min;  // int16 x 16
};

inline __m512i twice(__m256i x) { return _mm512_broadcast_i64x4(x); }
// The two halves shifted right by different counts.
inline __m512i shift_halves(__m512i x, int low, int high) {
  const __m512i counts = _mm512_inserti64x4(_mm512_set1_epi16(static_cast<short>(low)),
                                            _mm256_set1_epi16(static_cast<short>(high)), 1);
  return _mm512_srlv_epi16(x, counts);
}
inline __m512i bits(__m512i x, int mask) {
  return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(mask)));
}

// The 12 bytes of Q4_K and Q5_K: 8 scales and 8 minima of 6 bits, a byte each. Not with vectors: while
// 512 bits are in flight only two ports take those.
struct SixBits {
  uint64_t scales, mins;
};
inline SixBits six_bits(const std::byte* p) {
  const uint32_t a = load_u32(p), b = load_u32(p + 4), c = load_u32(p + 8);
  const uint64_t scale_low = a & 0x3f3f3f3fu, scale_high = (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
  const uint64_t min_low = b & 0x3f3f3f3fu, min_high = (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
  return {scale_low | scale_high << 32, min_low | min_high << 32};
}
// Eight bytes, each for a group of 32, as 16 int16.
inline __m256i widen_pairs(uint64_t bytes) {
  const __m128i x = _mm_cvtsi64_si128(static_cast<long long>(bytes));
  return _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, x));
}
inline Scales six_bit_scales(const std::byte* p) {
  const SixBits x = six_bits(p);
  return {widen_pairs(x.scales), widen_pairs(x.mins)};
}

// A type: bytes of a block; kGroup elements share a scale; kMin: dmin follows d, else the minimum
// is the zero point's; kBits: of its unsigned codes, 8 where they are signed ones plus 128; kWide: codes
// above 127, whose pairs of products do not fit in 16 bits; d is the half at kScale; vector j of the codes
// holds the 32-element groups kOrder[j]; kPacked: where what six_bits() reads is.
struct Q2K {  // scales[16] qs[64] d dmin
  static constexpr size_t kBytes = 84, kScale = 80, kGroup = 16;
  static constexpr int kBits = 2;
  static constexpr bool kMin = true, kWide = false;
  static constexpr int kOrder[4][2] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  static void codes(const std::byte* p, __m512i* u) {
    const __m512i x = load64(p + 16);
    u[0] = bits(x, 3);
    u[1] = bits(_mm512_srli_epi16(x, 2), 3);
    u[2] = bits(_mm512_srli_epi16(x, 4), 3);
    u[3] = bits(_mm512_srli_epi16(x, 6), 3);
  }
  static Scales scales(const std::byte* p) {
    const __m128i x = load16(p), mask = _mm_set1_epi8(15);
    return {_mm256_cvtepu8_epi16(_mm_and_si128(x, mask)),
            _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(x, 4), mask))};
  }
};

struct Q3K {  // hmask[32] qs[64] scales[12] d
  static constexpr size_t kBytes = 110, kScale = 108, kGroup = 16;
  static constexpr int kBits = 3;
  static constexpr bool kMin = false, kWide = false;
  static constexpr int kOrder[4][2] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}};
  static void codes(const std::byte* p, __m512i* u) {
    const __m512i x = load64(p + 32), high = shift_halves(twice(load32(p)), 0, 4);
    u[0] = _mm512_or_si512(bits(x, 3), bits(_mm512_slli_epi16(high, 2), 4));
    u[1] = _mm512_or_si512(bits(_mm512_srli_epi16(x, 2), 3), bits(_mm512_slli_epi16(high, 1), 4));
    u[2] = _mm512_or_si512(bits(_mm512_srli_epi16(x, 4), 3), bits(high, 4));
    u[3] = _mm512_or_si512(bits(_mm512_srli_epi16(x, 6), 3), bits(_mm512_srli_epi16(high, 1), 4));
  }
  static Scales scales(const std::byte* p) {
    const uint32_t a = load_u32(p + 96), b = load_u32(p + 100), c = load_u32(p + 104);
    const uint32_t s0 = (a & 0x0f0f0f0fu) | (c << 4 & 0x30303030u);
    const uint32_t s1 = (b & 0x0f0f0f0fu) | (c << 2 & 0x30303030u);
    const uint32_t s2 = (a >> 4 & 0x0f0f0f0fu) | (c & 0x30303030u);
    const uint32_t s3 = (b >> 4 & 0x0f0f0f0fu) | (c >> 2 & 0x30303030u);
    const __m128i bytes = _mm_setr_epi32(static_cast<int>(s0), static_cast<int>(s1), static_cast<int>(s2),
                                         static_cast<int>(s3));
    const __m256i scale = _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), _mm256_set1_epi16(32));
    return {scale, _mm256_slli_epi16(scale, 2)};
  }
};

struct Q4K {  // d dmin scales[12] qs[128]
  static constexpr size_t kBytes = 144, kScale = 0, kGroup = 32, kPacked = 4;
  static constexpr int kBits = 4;
  static constexpr bool kMin = true, kWide = false;
  static constexpr int kOrder[4][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}};
  static void codes(const std::byte* p, __m512i* u) {
    const __m512i x = load64(p + 16), y = load64(p + 80);
    u[0] = bits(x, 15);
    u[1] = bits(_mm512_srli_epi16(x, 4), 15);
    u[2] = bits(y, 15);
    u[3] = bits(_mm512_srli_epi16(y, 4), 15);
  }
  static Scales scales(const std::byte* p) { return six_bit_scales(p + kPacked); }
};

struct Q5K {  // d dmin scales[12] qh[32] qs[128]
  static constexpr size_t kBytes = 176, kScale = 0, kGroup = 32, kPacked = 4;
  static constexpr int kBits = 5;
  static constexpr bool kMin = true, kWide = false;
  static constexpr int kOrder[4][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}};
  static void codes(const std::byte* p, __m512i* u) {
    const __m512i x = load64(p + 48), y = load64(p + 112);
    const __m512i high = shift_halves(twice(load32(p + 16)), 0, 2);  // bit g of byte i: group g
    u[0] = _mm512_or_si512(bits(x, 15), bits(_mm512_slli_epi16(high, 4), 16));
    u[1] = _mm512_or_si512(bits(_mm512_srli_epi16(x, 4), 15), bits(_mm512_slli_epi16(high, 3), 16));
    u[2] = _mm512_or_si512(bits(y, 15), bits(high, 16));
    u[3] = _mm512_or_si512(bits(_mm512_srli_epi16(y, 4), 15), bits(_mm512_srli_epi16(high, 1), 16));
  }
  static Scales scales(const std::byte* p) { return six_bit_scales(p + kPacked); }
};

struct Q6K {  // ql[128] qh[64] scales[16] d
  static constexpr size_t kBytes = 210, kScale = 208, kGroup = 16;
  static constexpr int kBits = 6;
  static constexpr bool kMin = false, kWide = false;
  static constexpr int kOrder[4][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  static void half(const std::byte* ql, const std::byte* qh, __m512i* u) {
    const __m512i x = load64(ql), high = shift_halves(twice(load32(qh)), 0, 2);
    u[0] = _mm512_or_si512(bits(x, 15), bits(_mm512_slli_epi16(high, 4), 48));
    u[1] = _mm512_or_si512(bits(_mm512_srli_epi16(x, 4), 15), bits(high, 48));
  }
  static void codes(const std::byte* p, __m512i* u) {
    half(p, p + 128, u);
    half(p + 64, p + 160, u + 2);
  }
  static Scales scales(const std::byte* p) {
    const __m256i scale = _mm256_cvtepi8_epi16(load16(p + 192));
    return {scale, _mm256_slli_epi16(scale, 5)};
  }
};

struct Iq4Xs {  // d scales_h scales_l[4] qs[128]
  static constexpr size_t kBytes = 136, kScale = 0, kGroup = 32;
  static constexpr int kBits = 8;
  static constexpr bool kMin = false, kWide = true;
  static constexpr int kOrder[4][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  static void half(const std::byte* p, __m512i* u) {
    const __m512i values = _mm512_broadcast_i32x4(  // quant::kIq4Values + 128
        _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15));
    const __m512i x = load64(p);  // 128-bit lane i: group i, low nibbles first
    const __m512i low = _mm512_shuffle_epi8(values, bits(x, 15));
    const __m512i high = _mm512_shuffle_epi8(values, bits(_mm512_srli_epi16(x, 4), 15));
    u[0] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    u[1] = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
  }
  static void codes(const std::byte* p, __m512i* u) {
    half(p + 8, u);
    half(p + 72, u + 2);
  }
  static Scales scales(const std::byte* p) {
    const __m128i packed = _mm_cvtsi32_si128(load_i32(p + 4)), mask = _mm_set1_epi8(15);
    const __m128i low =
        _mm_unpacklo_epi8(_mm_and_si128(packed, mask), _mm_and_si128(_mm_srli_epi16(packed, 4), mask));
    const __m128i high = _mm_srlv_epi16(_mm_set1_epi16(static_cast<short>(load_u16(p + 2))),
                                        _mm_setr_epi16(0, 2, 4, 6, 8, 10, 12, 14));
    const __m128i scale = _mm_sub_epi16(
        _mm_or_si128(_mm_cvtepu8_epi16(low), _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi16(3)), 4)),
        _mm_set1_epi16(32));
    const __m256i pairs =
        _mm256_set_m128i(_mm_unpackhi_epi16(scale, scale), _mm_unpacklo_epi16(scale, scale));
    return {pairs, _mm256_slli_epi16(pairs, 7)};
  }
};

}  // namespace
}  // namespace selm::kernels::avx512

#endif
