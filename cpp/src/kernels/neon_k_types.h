// The 256-element types on aarch64: codes and small scales of a block. Layouts: quant/unpack.cpp.
#pragma once

#include "kernels/neon_dot.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

// In the order of groups: 16 of them, or 8 in scale[0] and min[0] where 32 elements share a scale.
// min: the minima, or zero point times scale, or nothing.
struct SmallScales {
  int16x8_t scale[2], min[2];
};

template <int kCount>
inline uint8x16_t shift_right(uint8x16_t x) {
  if constexpr (kCount > 0) {
    return vshrq_n_u8(x, kCount);
  } else if constexpr (kCount < 0) {
    return vshlq_n_u8(x, -kCount);
  } else {
    return x;
  }
}
// Bits kFrom .. kFrom + kCount, moved down to bit kTo.
template <int kFrom, int kCount, int kTo = 0>
inline int8x16_t field(const std::byte* p) {
  const uint8x16_t x = shift_right<kFrom - kTo>(load16(p));
  if constexpr (kFrom + kCount == 8 && kTo == 0) return vreinterpretq_s8_u8(x);
  return vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(((1 << kCount) - 1) << kTo)));
}
template <int kFrom, int kCount, int kTo = 0>
inline Codes fields(const std::byte* p) {
  return {field<kFrom, kCount, kTo>(p), field<kFrom, kCount, kTo>(p + 16)};
}
inline Codes either(Codes a, Codes b) { return {vorrq_s8(a.low, b.low), vorrq_s8(a.high, b.high)}; }

inline int16x8_t widen_low(uint8x16_t x) { return vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))); }
inline int16x8_t widen_high(uint8x16_t x) { return vreinterpretq_s16_u16(vmovl_high_u8(x)); }
inline uint64_t join(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }
inline int16x8_t widen_bytes(uint64_t x) { return vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(x))); }

// The 12 bytes of Q4_K and Q5_K: 8 scales and 8 minima of 6 bits.
inline SmallScales six_bit_scales(const std::byte* p) {
  const uint32_t a = load_u32(p), b = load_u32(p + 4), c = load_u32(p + 8);
  SmallScales s{};
  s.scale[0] = widen_bytes(join(a & 0x3f3f3f3fu, (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u)));
  s.min[0] = widen_bytes(join(b & 0x3f3f3f3fu, (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u)));
  return s;
}

// A type: bytes of a block; d is the half at kScale; kGroup elements share a scale; the zero point;
// kMin: dmin follows d; wide codes (see neon_dot.h). codes<g>: elements 32 g .. 32 g + 32, before the
// zero point is taken off.
struct Q2K {  // scales[16] qs[64] d dmin
  static constexpr size_t kBlock = 256, kBytes = 84, kScale = 80, kGroup = 16;
  static constexpr int kZero = 0;
  static constexpr bool kMin = true, kWide = false;
  template <int g>
  static Codes codes(const std::byte* p) {
    return fields<2 * (g % 4), 2>(p + 16 + g / 4 * 32);
  }
  static SmallScales scales(const std::byte* p) {
    const uint8x16_t x = load16(p);
    const uint8x16_t scale = vandq_u8(x, vdupq_n_u8(15)), min = vshrq_n_u8(x, 4);
    return {{widen_low(scale), widen_high(scale)}, {widen_low(min), widen_high(min)}};
  }
};

struct Q3K {  // hmask[32] qs[64] scales[12] d
  static constexpr size_t kBlock = 256, kBytes = 110, kScale = 108, kGroup = 16;
  static constexpr int kZero = 4;
  static constexpr bool kMin = false, kWide = false;
  template <int g>
  static Codes codes(const std::byte* p) {
    return either(fields<2 * (g % 4), 2>(p + 32 + g / 4 * 32), fields<g, 1, 2>(p));
  }
  static SmallScales scales(const std::byte* p) {
    const uint32_t a = load_u32(p + 96), b = load_u32(p + 100), c = load_u32(p + 104);
    const uint64_t low =
        join((a & 0x0f0f0f0fu) | (c << 4 & 0x30303030u), (b & 0x0f0f0f0fu) | (c << 2 & 0x30303030u));
    const uint64_t high =
        join((a >> 4 & 0x0f0f0f0fu) | (c & 0x30303030u), (b >> 4 & 0x0f0f0f0fu) | (c >> 2 & 0x30303030u));
    const int16x8_t x = vsubq_s16(widen_bytes(low), vdupq_n_s16(32));
    const int16x8_t y = vsubq_s16(widen_bytes(high), vdupq_n_s16(32));
    return {{x, y}, {vshlq_n_s16(x, 2), vshlq_n_s16(y, 2)}};
  }
};

struct Q4K {  // d dmin scales[12] qs[128]
  static constexpr size_t kBlock = 256, kBytes = 144, kScale = 0, kGroup = 32;
  static constexpr int kZero = 0;
  static constexpr bool kMin = true, kWide = false;
  template <int g>
  static Codes codes(const std::byte* p) {
    return fields<4 * (g % 2), 4>(p + 16 + g / 2 * 32);
  }
  static SmallScales scales(const std::byte* p) { return six_bit_scales(p + 4); }
};

struct Q5K {  // d dmin scales[12] qh[32] qs[128]
  static constexpr size_t kBlock = 256, kBytes = 176, kScale = 0, kGroup = 32;
  static constexpr int kZero = 0;
  static constexpr bool kMin = true, kWide = false;
  template <int g>
  static Codes codes(const std::byte* p) {
    return either(fields<4 * (g % 2), 4>(p + 48 + g / 2 * 32), fields<g, 1, 4>(p + 16));
  }
  static SmallScales scales(const std::byte* p) { return six_bit_scales(p + 4); }
};

struct Q6K {  // ql[128] qh[64] scales[16] d
  static constexpr size_t kBlock = 256, kBytes = 210, kScale = 208, kGroup = 16;
  static constexpr int kZero = 32;
  static constexpr bool kMin = false, kWide = false;
  template <int g>
  static Codes codes(const std::byte* p) {
    return either(fields<g % 4 / 2 * 4, 4>(p + g / 4 * 64 + g % 2 * 32),
                  fields<2 * (g % 4), 2, 4>(p + 128 + g / 4 * 32));
  }
  static SmallScales scales(const std::byte* p) {
    const int8x16_t s = load16_signed(p + 192);
    const int16x8_t x = vmovl_s8(vget_low_s8(s)), y = vmovl_high_s8(s);
    return {{x, y}, {vshlq_n_s16(x, 5), vshlq_n_s16(y, 5)}};
  }
};

struct Iq4Xs {  // d scales_h scales_l[4] qs[128]
  static constexpr size_t kBlock = 256, kBytes = 136, kScale = 0, kGroup = 32;
  static constexpr int kZero = 0;
  static constexpr bool kMin = false, kWide = true;
  template <int g>
  static Codes codes(const std::byte* p) {
    const uint8x16_t x = load16(p + 8 + 16 * g);
    return {iq4_values(vandq_u8(x, vdupq_n_u8(15))), iq4_values(vshrq_n_u8(x, 4))};
  }
  static SmallScales scales(const std::byte* p) {
    const uint8x8_t packed = vcreate_u8(load_u32(p + 4));
    const uint16x8_t low = vmovl_u8(vzip1_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8(packed, 4)));
    // Two bits of group i at bit 2i: down to bits 0-1, then to 4-5.
    static constexpr int16_t kDown[8] = {0, -2, -4, -6, -8, -10, -12, -14};
    const uint16x8_t high = vshlq_u16(vdupq_n_u16(load_u16(p + 2)), vld1q_s16(kDown));
    const uint16x8_t both = vorrq_u16(low, vshlq_n_u16(vandq_u16(high, vdupq_n_u16(3)), 4));
    SmallScales s{};
    s.scale[0] = vsubq_s16(vreinterpretq_s16_u16(both), vdupq_n_s16(32));
    return s;
  }
};

}  // namespace
}  // namespace selm::kernels::neon

#endif
