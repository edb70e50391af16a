#include "quant/unpack.h"

#include <cstring>

#include "quant/f16.h"

namespace selm::quant {
namespace {

uint32_t u8(const std::byte* p, size_t i) { return std::to_integer<uint32_t>(p[i]); }

// Nibbles as all 32-element types store them: element i in the low half of byte i, 16 + i in the high.
uint32_t nibble(const std::byte* qs, size_t i) { return i < 16 ? u8(qs, i) & 15u : u8(qs, i - 16) >> 4; }

void q4_0(const std::byte* p, Block32& b) {
  b.d = load_f16(p);
  b.m = 0;
  for (size_t i = 0; i < 32; ++i) b.q[i] = static_cast<int8_t>(static_cast<int>(nibble(p + 2, i)) - 8);
}

void q4_1(const std::byte* p, Block32& b) {
  b.d = load_f16(p);
  b.m = load_f16(p + 2);
  for (size_t i = 0; i < 32; ++i) b.q[i] = static_cast<int8_t>(nibble(p + 4, i));
}

// Bit i of the 32 bits at qh is the fifth bit of element i.
uint32_t five_bits(const std::byte* qh, const std::byte* qs, size_t i) {
  return nibble(qs, i) | (u8(qh, i / 8) >> (i % 8) & 1u) << 4;
}

void q5_0(const std::byte* p, Block32& b) {
  b.d = load_f16(p);
  b.m = 0;
  for (size_t i = 0; i < 32; ++i) {
    b.q[i] = static_cast<int8_t>(static_cast<int>(five_bits(p + 2, p + 6, i)) - 16);
  }
}

void q5_1(const std::byte* p, Block32& b) {
  b.d = load_f16(p);
  b.m = load_f16(p + 2);
  for (size_t i = 0; i < 32; ++i) b.q[i] = static_cast<int8_t>(five_bits(p + 4, p + 8, i));
}

void q8_0(const std::byte* p, Block32& b) {
  b.d = load_f16(p);
  b.m = 0;
  std::memcpy(b.q, p + 2, 32);
}

void iq4_nl(const std::byte* p, Block32& b) {
  b.d = load_f16(p);
  b.m = 0;
  for (size_t i = 0; i < 32; ++i) b.q[i] = kIq4Values[nibble(p + 2, i)];
}

// Two bits of element i of 256, as Q2_K and Q3_K store them: 32 bytes hold 4 groups of 32.
uint32_t two_bits(const std::byte* qs, size_t i) {
  return u8(qs, i / 128 * 32 + i % 32) >> (2 * (i / 32 % 4)) & 3u;
}

// Four bits of element i of 256, as Q4_K and Q5_K store them: 32 bytes hold 2 groups of 32.
uint32_t four_bits(const std::byte* qs, size_t i) {
  return u8(qs, i / 64 * 32 + i % 32) >> (4 * (i / 32 % 2)) & 15u;
}

void q2_k(const std::byte* p, Block256& b) {  // scales[16] qs[64] d dmin
  b.d = load_f16(p + 80);
  b.dmin = load_f16(p + 82);
  for (size_t g = 0; g < 16; ++g) {
    b.scale[g] = static_cast<int8_t>(u8(p, g) & 15u);
    b.min[g] = static_cast<uint8_t>(u8(p, g) >> 4);
  }
  for (size_t i = 0; i < 256; ++i) b.q[i] = static_cast<int8_t>(two_bits(p + 16, i));
}

void q3_k(const std::byte* p, Block256& b) {  // hmask[32] qs[64] scales[12] d
  const std::byte* scales = p + 96;
  b.d = load_f16(p + 108);
  b.dmin = 0;
  for (size_t g = 0; g < 16; ++g) {
    const uint32_t low = g < 8 ? u8(scales, g) & 15u : u8(scales, g - 8) >> 4;
    const uint32_t high = u8(scales, 8 + g % 4) >> (2 * (g / 4)) & 3u;
    b.scale[g] = static_cast<int8_t>(static_cast<int>(low | high << 4) - 32);
    b.min[g] = 0;
  }
  for (size_t i = 0; i < 256; ++i) {
    const uint32_t high = u8(p, i % 32) >> (i / 32) & 1u;  // set: nothing to subtract
    b.q[i] = static_cast<int8_t>(static_cast<int>(two_bits(p + 32, i) | high << 2) - 4);
  }
}

// The 12 bytes of Q4_K and Q5_K: 8 scales and 8 minima of 6 bits.
void six_bit_scales(const std::byte* s, Block256& b) {
  for (size_t j = 0; j < 8; ++j) {
    uint32_t scale = 0, min = 0;
    if (j < 4) {
      scale = u8(s, j) & 63u;
      min = u8(s, j + 4) & 63u;
    } else {
      scale = (u8(s, j + 4) & 15u) | u8(s, j - 4) >> 6 << 4;
      min = u8(s, j + 4) >> 4 | u8(s, j) >> 6 << 4;
    }
    b.scale[2 * j] = b.scale[2 * j + 1] = static_cast<int8_t>(scale);
    b.min[2 * j] = b.min[2 * j + 1] = static_cast<uint8_t>(min);
  }
}

void q4_k(const std::byte* p, Block256& b) {  // d dmin scales[12] qs[128]
  b.d = load_f16(p);
  b.dmin = load_f16(p + 2);
  six_bit_scales(p + 4, b);
  for (size_t i = 0; i < 256; ++i) b.q[i] = static_cast<int8_t>(four_bits(p + 16, i));
}

void q5_k(const std::byte* p, Block256& b) {  // d dmin scales[12] qh[32] qs[128]
  b.d = load_f16(p);
  b.dmin = load_f16(p + 2);
  six_bit_scales(p + 4, b);
  for (size_t i = 0; i < 256; ++i) {
    const uint32_t high = u8(p + 16, i % 32) >> (i / 32) & 1u;
    b.q[i] = static_cast<int8_t>(four_bits(p + 48, i) | high << 4);
  }
}

void q6_k(const std::byte* p, Block256& b) {  // ql[128] qh[64] scales[16] d
  b.d = load_f16(p + 208);
  b.dmin = 0;
  for (size_t g = 0; g < 16; ++g) {
    b.scale[g] = static_cast<int8_t>(u8(p, 192 + g));
    b.min[g] = 0;
  }
  for (size_t i = 0; i < 256; ++i) {
    const size_t half = i / 128, group = i / 32 % 4;
    const uint32_t low = u8(p, half * 64 + group % 2 * 32 + i % 32) >> (group / 2 * 4) & 15u;
    const uint32_t high = u8(p, 128 + half * 32 + i % 32) >> (2 * group) & 3u;
    b.q[i] = static_cast<int8_t>(static_cast<int>(low | high << 4) - 32);
  }
}

void iq4_xs(const std::byte* p, Block256& b) {  // d scales_h scales_l[4] qs[128]
  b.d = load_f16(p);
  b.dmin = 0;
  const uint32_t scales_h = load_u16(p + 2);
  for (size_t g = 0; g < 8; ++g) {
    const uint32_t low = u8(p, 4 + g / 2) >> (4 * (g % 2)) & 15u;
    const uint32_t high = scales_h >> (2 * g) & 3u;
    b.scale[2 * g] = b.scale[2 * g + 1] = static_cast<int8_t>(static_cast<int>(low | high << 4) - 32);
    b.min[2 * g] = b.min[2 * g + 1] = 0;
  }
  for (size_t i = 0; i < 256; ++i) b.q[i] = kIq4Values[nibble(p + 8 + i / 32 * 16, i % 32)];
}

}  // namespace

Unpack32 unpack32(Type type) {
  switch (type) {
    case Type::q4_0:
      return q4_0;
    case Type::q4_1:
      return q4_1;
    case Type::q5_0:
      return q5_0;
    case Type::q5_1:
      return q5_1;
    case Type::q8_0:
      return q8_0;
    case Type::iq4_nl:
      return iq4_nl;
    default:
      return nullptr;
  }
}

Unpack256 unpack256(Type type) {
  switch (type) {
    case Type::q2_k:
      return q2_k;
    case Type::q3_k:
      return q3_k;
    case Type::q4_k:
      return q4_k;
    case Type::q5_k:
      return q5_k;
    case Type::q6_k:
      return q6_k;
    case Type::iq4_xs:
      return iq4_xs;
    default:
      return nullptr;
  }
}

}  // namespace selm::quant
