// Strips of weights as int8, AVX-512.
//
// One row, one block: with x = step_g * code - low_g in group g, and amax no less than any |x| of the block,
//   code' = round(x * 127 / amax), scale' = amax / 127.
// step and low are brought to fixed point (2^-5 of a new code), so that a code is one multiplication of
// 16 bits. amax follows from the groups' scales and the types' largest codes, without looking at the codes.
#include "kernels/avx512_requantize.h"

#if defined(__x86_64__)

#include "kernels/avx512_k_types.h"
#include "kernels/avx512_q32_types.h"

namespace selm::kernels::avx512 {
namespace {

template <class T>
concept Blocks32 = requires { T::load4; };
template <class T>
concept Blocks256 = requires { T::codes; };

// One block of one row: vectors of codes, and per 16 elements (one 128-bit lane of a vector) the step and
// what is taken off.
struct Block {
  __m512i codes[4];
  __m512 step, low;
};

// Which of the 16 groups of 16 elements each lane of vector j holds, for each of its int16.
struct Lanes {
  alignas(64) uint16_t group[4][32];
};
template <class T>
constexpr Lanes make_lanes() {
  Lanes lanes{};
  for (size_t j = 0; j < 4; ++j) {
    for (size_t i = 0; i < 4; ++i) {
      size_t group = 2 * (4 * (j / 2) + i) + j % 2;  // load4: low halves of 4 blocks, then high ones
      if constexpr (Blocks256<T>) group = 2 * static_cast<size_t>(T::kOrder[j][i / 2]) + i % 2;
      for (size_t e = 0; e < 8; ++e) lanes.group[j][8 * i + e] = static_cast<uint16_t>(group);
    }
  }
  return lanes;
}
template <class T>
constexpr Lanes kLanes = make_lanes<T>();

inline __m512 to_floats(__m256i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(x)); }
inline __m512 half(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(load_u16(p))));
}

// The halves at `offset` of 8 blocks, each twice.
template <class T>
inline __m512 halves(const std::byte* p, size_t offset) {
  alignas(16) uint16_t x[8];
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) x[i] = load_u16(p + i * T::kBytes + offset);
  const __m128i y = load16(x);
  return _mm512_cvtph_ps(_mm256_set_m128i(_mm_unpackhi_epi16(y, y), _mm_unpacklo_epi16(y, y)));
}

template <Blocks32 T>
inline Block load_block(const std::byte* p) {
  const Codes a = T::load4(p), b = T::load4(p + 4 * T::kBytes);
  const __m512 step = halves<T>(p, 0);
  __m512 low = _mm512_setzero_ps();
  if constexpr (T::kMin) low = _mm512_sub_ps(low, halves<T>(p, 2));
  if constexpr (T::kZero >= 0 && T::kZero < 7) low = _mm512_mul_ps(step, _mm512_set1_ps(1 << T::kZero));
  return {{a.low, a.high, b.low, b.high}, step, low};
}

template <Blocks256 T>
inline Block load_block(const std::byte* p) {
  Block b;
  T::codes(p, b.codes);
  const Scales scales = T::scales(p);
  const __m512 d = half(p + T::kScale);
  b.step = _mm512_mul_ps(d, to_floats(scales.scale));
  b.low = _mm512_setzero_ps();
  if constexpr (!T::kWide)
    b.low = _mm512_mul_ps(T::kMin ? half(p + T::kScale + 2) : d, to_floats(scales.min));
  return b;
}

// Codes of one row's block as int8, in the order of its vectors; the scale.
template <class T>
inline float requantize_block(const Block& b, __m512i* out) {
  constexpr int kShift = 7 - T::kBits;  // brings unsigned codes to 7 bits
  const __m512 top = T::kBits == 8 ? _mm512_mul_ps(b.step, _mm512_set1_ps(128))
                                   : _mm512_fmsub_ps(b.step, _mm512_set1_ps((1 << T::kBits) - 1), b.low);
  // As integers, magnitudes order as floats do, infinity and NaN above all.
  const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude_bits(top), magnitude_bits(b.low)));
  float amax;
  __builtin_memcpy(&amax, &bits, sizeof amax);
  const bool scaled = amax >= kTinyBlock && bits < 0x7f800000;
  const __m512 inverse = _mm512_set1_ps(scaled ? 127.0f / amax : 0.0f);
  const __mmask16 keep = scaled ? 0xffff : 0;  // 0 * infinity must not reach the conversions
  // A product of (code << 8) and the factor, its upper 16 bits, is in units of 2^-5.
  const float kUnit = T::kBits == 8 ? 1 << 13 : 1 << (6 + T::kBits);
  const __m512 step = _mm512_mul_ps(_mm512_mul_ps(b.step, inverse), _mm512_set1_ps(kUnit));
  // Half a unit for the bits that are cut off, half a code to round to nearest.
  const __m512 low =
      _mm512_fmsub_ps(_mm512_mul_ps(b.low, inverse), _mm512_set1_ps(32), _mm512_set1_ps(16.5f));
  const __m512i steps = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_maskz_cvtps_epi32(keep, step)));
  const __m512i lows = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_maskz_cvtps_epi32(keep, low)));
  const __m512i zero = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const __m512i lanes = load64(kLanes<T>.group[j]);
    const __m512i factor = _mm512_permutexvar_epi16(lanes, steps);
    const __m512i off = _mm512_permutexvar_epi16(lanes, lows);
    __m512i u = b.codes[j];
    if constexpr (T::kBits == 8) {
      u = _mm512_xor_si512(u, _mm512_set1_epi8(-128));
    } else {
      u = _mm512_slli_epi16(u, kShift);
    }
    const auto code = [&](__m512i x) {
      return _mm512_srai_epi16(_mm512_sub_epi16(_mm512_mulhi_epi16(x, factor), off), 5);
    };
    out[j] = _mm512_packs_epi16(code(_mm512_unpacklo_epi8(zero, u)), code(_mm512_unpackhi_epi8(zero, u)));
  }
  return scaled ? amax / 127.0f : (bits >= 0x7f800000 ? __builtin_nanf("") : 0.0f);
}

// Where dword t of vector j goes: k / 4.
template <class T>
constexpr size_t place(size_t j, size_t t) {
  return 4 * kLanes<T>.group[j][2 * (t / 4) * 4] + t % 4;
}

template <class T>
void requantize_strip(const std::byte* weights, size_t rows, size_t row_bytes, size_t k0, size_t count,
                      Strip& strip) {
  constexpr size_t kBlockBytes = Blocks32<T> ? 8 * T::kBytes : T::kBytes;
  const __m512i zero_point = _mm512_set1_epi8(-128);  // 128, unsigned
  for (size_t s = 0; 256 * s < count; ++s) {
    const size_t here = count - 256 * s;  // elements left
    const std::byte* first = weights + (k0 / 256 + s) * kBlockBytes;
    for (size_t v = 0; v < kStripVectors; ++v) {
      __m512i codes[4][16];
      for (size_t i = 0; i < 16; ++i) {
        const size_t r = v * 16 + i < rows ? v * 16 + i : rows - 1;
        const std::byte* p = first + r * row_bytes;
        prefetch<kBlockBytes>(p, 4 * row_bytes);
        alignas(64) std::byte copy[kBlockBytes];
        if (here < 256) {  // of the 32-element types alone; absent blocks are zeros
          __builtin_memset(copy, 0, sizeof copy);
          __builtin_memcpy(copy, p, here / 32 * T::kBytes);
          p = copy;
        }
        __m512i x[4];
        strip.scale[s][v][i] = requantize_block<T>(load_block<T>(p), x);
        for (size_t j = 0; j < 4; ++j) codes[j][i] = x[j];
      }
      __m512i start = _mm512_setzero_si512();
      for (size_t j = 0; j < 4; ++j) {
        transpose16(codes[j]);
#pragma GCC unroll 16
        for (size_t t = 0; t < 16; ++t) {
          _mm512_store_si512(strip.codes[s][place<T>(j, t)][v], codes[j][t]);
          start = _mm512_dpbusd_epi32(start, zero_point, codes[j][t]);
        }
      }
      _mm512_store_si512(strip.start[s][v], _mm512_sub_epi32(_mm512_setzero_si512(), start));
    }
  }
}

}  // namespace

Requantize requantize(quant::Type type) {
  switch (type) {
    case quant::Type::q4_0:
      return requantize_strip<Q4_0>;
    case quant::Type::q4_1:
      return requantize_strip<Q4_1>;
    case quant::Type::q5_0:
      return requantize_strip<Q5_0>;
    case quant::Type::q5_1:
      return requantize_strip<Q5_1>;
    case quant::Type::q8_0:
      return requantize_strip<Q8_0>;
    case quant::Type::iq4_nl:
      return requantize_strip<Iq4Nl>;
    case quant::Type::q2_k:
      return requantize_strip<Q2K>;
    case quant::Type::q3_k:
      return requantize_strip<Q3K>;
    case quant::Type::q4_k:
      return requantize_strip<Q4K>;
    case quant::Type::q5_k:
      return requantize_strip<Q5K>;
    case quant::Type::q6_k:
      return requantize_strip<Q6K>;
    case quant::Type::iq4_xs:
      return requantize_strip<Iq4Xs>;
    default:
      return nullptr;
  }
}

}  // namespace selm::kernels::avx512

#endif
