// Products of the 256-element types, AVX2. The plan and the order of sums are those of avx512_k.cpp,
// with 16 rows a strip; bytes are multiplied in pairs into 16 bits, then times the scale into 32.
#include "kernels/avx2.h"

#if defined(__x86_64__)

namespace selm::kernels::avx2 {
namespace {

constexpr size_t kPieceBlocks = kPiece / 256;

// Scales of the 16 groups of 16: int16 x 16, the even groups' in the low 128-bit lane, the odd ones'
// in the high lane. Minima (or zero point times scale): int16 x 16 in order.
struct Scales {
  __m256i scale, min;
};

inline __m256i bits(__m256i x, int mask) {
  return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask)));
}
template <int kCount>
inline __m256i shift_right(__m256i x) {
  if constexpr (kCount >= 0) return _mm256_srli_epi16(x, kCount);
  return _mm256_slli_epi16(x, -kCount);
}

// 16 bytes in the order of groups: even ones first.
inline __m128i evens_first(__m128i x) {
  return _mm_shuffle_epi8(x, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

// The 12 bytes of Q4_K and Q5_K: 8 scales and 8 minima of 6 bits, each for two groups of 16.
inline Scales six_bit_scales(const std::byte* p) {
  const uint32_t a = load_u32(p), b = load_u32(p + 4), c = load_u32(p + 8);
  const uint64_t scale_low = a & 0x3f3f3f3fu, scale_high = (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
  const uint64_t min_low = b & 0x3f3f3f3fu, min_high = (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
  const __m128i scale = _mm_cvtsi64_si128(static_cast<long long>(scale_low | scale_high << 32));
  const __m128i min = _mm_cvtsi64_si128(static_cast<long long>(min_low | min_high << 32));
  return {_mm256_cvtepu8_epi16(_mm_unpacklo_epi64(scale, scale)),
          _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(min, min))};
}

// A type: bytes of a block; kGroup elements share a scale; kMin: dmin follows d, else the minimum
// is the zero point's; kSigned: signed codes, no zero point; kRun: pairs that add up in 16 bits;
// d is the half at kScale. codes<g>: the 32-element group g.
struct Q2K {  // scales[16] qs[64] d dmin
  static constexpr size_t kBytes = 84, kScale = 80, kGroup = 16, kRun = 4;
  static constexpr bool kMin = true, kSigned = false;
  template <int g>
  static __m256i codes(const std::byte* p) {
    return bits(shift_right<2 * (g % 4)>(load32(p + 16 + g / 4 * 32)), 3);
  }
  static Scales scales(const std::byte* p) {
    const __m128i x = load16(p), mask = _mm_set1_epi8(15);
    return {_mm256_cvtepu8_epi16(evens_first(_mm_and_si128(x, mask))),
            _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(x, 4), mask))};
  }
};

struct Q3K {  // hmask[32] qs[64] scales[12] d
  static constexpr size_t kBytes = 110, kScale = 108, kGroup = 16, kRun = 4;
  static constexpr bool kMin = false, kSigned = false;
  template <int g>
  static __m256i codes(const std::byte* p) {
    const __m256i low = bits(shift_right<2 * (g % 4)>(load32(p + 32 + g / 4 * 32)), 3);
    return _mm256_or_si256(low, bits(shift_right<g - 2>(load32(p)), 4));
  }
  static Scales scales(const std::byte* p) {
    const uint32_t a = load_u32(p + 96), b = load_u32(p + 100), c = load_u32(p + 104);
    const uint32_t s0 = (a & 0x0f0f0f0fu) | (c << 4 & 0x30303030u);
    const uint32_t s1 = (b & 0x0f0f0f0fu) | (c << 2 & 0x30303030u);
    const uint32_t s2 = (a >> 4 & 0x0f0f0f0fu) | (c & 0x30303030u);
    const uint32_t s3 = (b >> 4 & 0x0f0f0f0fu) | (c >> 2 & 0x30303030u);
    const __m128i scale = _mm_sub_epi8(_mm_setr_epi32(static_cast<int>(s0), static_cast<int>(s1),
                                                      static_cast<int>(s2), static_cast<int>(s3)),
                                       _mm_set1_epi8(32));
    return {_mm256_cvtepi8_epi16(evens_first(scale)), _mm256_slli_epi16(_mm256_cvtepi8_epi16(scale), 2)};
  }
};

struct Q4K {  // d dmin scales[12] qs[128]
  static constexpr size_t kBytes = 144, kScale = 0, kGroup = 32, kRun = 8;
  static constexpr bool kMin = true, kSigned = false;
  template <int g>
  static __m256i codes(const std::byte* p) {
    return bits(shift_right<4 * (g % 2)>(load32(p + 16 + g / 2 * 32)), 15);
  }
  static Scales scales(const std::byte* p) { return six_bit_scales(p + 4); }
};

struct Q5K {  // d dmin scales[12] qh[32] qs[128]
  static constexpr size_t kBytes = 176, kScale = 0, kGroup = 32, kRun = 4;
  static constexpr bool kMin = true, kSigned = false;
  template <int g>
  static __m256i codes(const std::byte* p) {
    const __m256i low = bits(shift_right<4 * (g % 2)>(load32(p + 48 + g / 2 * 32)), 15);
    return _mm256_or_si256(low, bits(shift_right<g - 4>(load32(p + 16)), 16));
  }
  static Scales scales(const std::byte* p) { return six_bit_scales(p + 4); }
};

struct Q6K {  // ql[128] qh[64] scales[16] d
  static constexpr size_t kBytes = 210, kScale = 208, kGroup = 16, kRun = 2;
  static constexpr bool kMin = false, kSigned = false;
  template <int g>
  static __m256i codes(const std::byte* p) {
    const __m256i low = bits(shift_right<g % 4 / 2 * 4>(load32(p + g / 4 * 64 + g % 2 * 32)), 15);
    return _mm256_or_si256(low, bits(shift_right<2 * (g % 4) - 4>(load32(p + 128 + g / 4 * 32)), 48));
  }
  static Scales scales(const std::byte* p) {
    const __m128i scale = load16(p + 192);
    return {_mm256_cvtepi8_epi16(evens_first(scale)), _mm256_slli_epi16(_mm256_cvtepi8_epi16(scale), 5)};
  }
};

struct Iq4Xs {  // d scales_h scales_l[4] qs[128]
  static constexpr size_t kBytes = 136, kScale = 0, kGroup = 32, kRun = 1;
  static constexpr bool kMin = false, kSigned = true;
  template <int g>
  static __m256i codes(const std::byte* p) {
    const __m128i x = load16(p + 8 + 16 * g);
    const __m256i nibbles = bits(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), 15);
    const __m256i values = _mm256_broadcastsi128_si256(  // quant::kIq4Values
        _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113));
    return _mm256_shuffle_epi8(values, nibbles);
  }
  static Scales scales(const std::byte* p) {
    const __m128i packed = _mm_cvtsi32_si128(load_i32(p + 4)), mask = _mm_set1_epi8(15);
    const __m128i low = _mm_cvtepu8_epi16(
        _mm_unpacklo_epi8(_mm_and_si128(packed, mask), _mm_and_si128(_mm_srli_epi16(packed, 4), mask)));
    // Two bits of group i at bit 2i: moved up to bits 14-15 by a product, then down to 4-5.
    const __m128i up =
        _mm_mullo_epi16(_mm_set1_epi16(static_cast<short>(load_u16(p + 2))),
                        _mm_setr_epi16(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(up, 10), _mm_set1_epi16(48));
    const __m128i scale = _mm_sub_epi16(_mm_or_si128(low, high), _mm_set1_epi16(32));
    return {_mm256_set_m128i(scale, scale), _mm256_setzero_si256()};
  }
};

template <class T>
inline __m256i pairs(__m256i w, __m256i a) {
  if constexpr (T::kSigned) return pairs_signed(w, a);
  return _mm256_maddubs_epi16(w, a);
}

template <class T>
inline void all_codes(const std::byte* p, __m256i* u) {
  u[0] = T::template codes<0>(p);
  u[1] = T::template codes<1>(p);
  u[2] = T::template codes<2>(p);
  u[3] = T::template codes<3>(p);
  u[4] = T::template codes<4>(p);
  u[5] = T::template codes<5>(p);
  u[6] = T::template codes<6>(p);
  u[7] = T::template codes<7>(p);
}

// ---- Few columns: lanes run along the row --------------------------------------------------------

// One super-block times one column: partial sums of codes and of minima, 8 int32 each.
struct Partial {
  __m256i dot, min;
};
template <class T>
inline Partial block_partial(const __m256i* u, const Scales& scales, const Act256& act, size_t s) {
  const int8_t* q = act.q + 256 * s;
  __m256i dot = _mm256_setzero_si256();
  // The scale of groups 2g (low lane) and 2g + 1 (high lane), eight times each.
  __m256i pick = _mm256_set1_epi16(0x0100);
#pragma GCC unroll 8
  for (size_t g = 0; g < 8; ++g) {
    const __m256i scale = _mm256_shuffle_epi8(scales.scale, pick);
    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs<T>(u[g], load32(q + 32 * g)), scale));
    pick = _mm256_add_epi8(pick, _mm256_set1_epi8(2));
  }
  if constexpr (T::kSigned) return {dot, _mm256_setzero_si256()};
  const __m256i min = _mm256_madd_epi16(scales.min, load32(act.sum + 16 * s));
  if constexpr (T::kMin) return {dot, min};
  return {_mm256_sub_epi32(dot, min), _mm256_setzero_si256()};
}

// Lane i: the sum of the 8 lanes of x[i].
inline __m128i sum_4(__m256i x0, __m256i x1, __m256i x2, __m256i x3) {
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(x0, x1), _mm256_unpackhi_epi32(x0, x1));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(x2, x3), _mm256_unpackhi_epi32(x2, x3));
  const __m256i c = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  return _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
}

// 4 super-blocks (`blocks` of them exist) against kCols columns.
template <class T, int kCols>
inline void add_chunk(const std::byte* w, size_t blocks, const Act256* acts, size_t s0, __m128* acc) {
  Partial part[kCols][4];
  for (size_t i = 0; i < 4; ++i) {
    if (i >= blocks) {
      for (int c = 0; c < kCols; ++c) part[c][i] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      continue;
    }
    const std::byte* p = w + i * T::kBytes;
    prefetch<T::kBytes>(p);
    __m256i u[8];
    all_codes<T>(p, u);
    const Scales scales = T::scales(p);
    for (int c = 0; c < kCols; ++c) part[c][i] = block_partial<T>(u, scales, acts[c], s0 + i);
  }
  const __m128 d = load_halves(w + T::kScale, T::kBytes, blocks);
  for (int c = 0; c < kCols; ++c) {
    const Partial* x = part[c];
    const __m128 scale = _mm_loadu_ps(acts[c].scale + s0);
    const __m128i dot = sum_4(x[0].dot, x[1].dot, x[2].dot, x[3].dot);
    acc[c] = _mm_fmadd_ps(_mm_cvtepi32_ps(dot), _mm_mul_ps(d, scale), acc[c]);
    if constexpr (T::kMin) {
      const __m128 dmin = load_halves(w + T::kScale + 2, T::kBytes, blocks);
      const __m128i min = sum_4(x[0].min, x[1].min, x[2].min, x[3].min);
      acc[c] = _mm_fnmadd_ps(_mm_cvtepi32_ps(min), _mm_mul_ps(dmin, scale), acc[c]);
    }
  }
}

template <class T, int kCols>
void few_columns(const std::byte* weights, size_t n_rows, size_t n, const Act256* acts, float* out,
                 size_t ldo) {
  const size_t n_blocks = n / 256;
  for (size_t r = 0; r < n_rows; ++r) {
    const std::byte* row = weights + r * n_blocks * T::kBytes;
    for (size_t s0 = 0; s0 < n_blocks; s0 += kPieceBlocks) {
      const size_t end = n_blocks - s0 < kPieceBlocks ? n_blocks : s0 + kPieceBlocks;
      __m128 acc[kCols];
      for (int c = 0; c < kCols; ++c) acc[c] = _mm_setzero_ps();
      for (size_t s = s0; s < end; s += 4) {
        add_chunk<T, kCols>(row + s * T::kBytes, end - s < 4 ? end - s : 4, acts, s, acc);
      }
      for (size_t c = 0; c < kCols; ++c) {
        float* place = out + c * ldo + r;
        *place = s0 == 0 ? sum_lanes(acc[c]) : *place + sum_lanes(acc[c]);
      }
    }
  }
}

// ---- Many columns: lanes are rows ---------------------------------------------------------------

constexpr size_t kVectors = 2;  // of 8 rows
constexpr size_t kStripRows = 8 * kVectors;
constexpr size_t kTileColumns =
    2;  // with 2 vectors: 4 sums in 16 bits, 4 in 32, 2 of weights, 1 of activations

// One piece of a strip of rows, unpacked: 4 codes of each of 8 rows make a vector.
struct Strip {
  alignas(32)
      uint8_t codes[kPieceBlocks][8][8][kVectors][32];  // [s, group of 32, k / 4, row / 8, row * 4 + k % 4]
  alignas(
      32) int16_t scale[kPieceBlocks][16][kVectors][16];   // [s, group of 16, row / 8, row * 2]: each twice
  alignas(32) int16_t min[kPieceBlocks][8][kVectors][16];  // [s, pair of groups, row / 8, row * 2 + which]
  alignas(32) float d[kPieceBlocks][kVectors][8];
  alignas(32) float dmin[kPieceBlocks][kVectors][8];
};

// Pairs of groups that a vector of minima holds: of 16 elements, or of 32 where those share a minimum.
template <class T>
constexpr size_t kMinPairs = T::kGroup == 32 ? 4 : 8;

// Super-block s of 8 rows.
template <class T>
void unpack_block(const std::byte* const* row, size_t s, size_t v, Strip& strip) {
  __m256i codes[8][8], even[8], odd[8], min[8];
  for (size_t i = 0; i < 8; ++i) {
    const std::byte* p = row[i] + s * T::kBytes;
    __m256i u[8];
    all_codes<T>(p, u);
    for (size_t g = 0; g < 8; ++g) codes[g][i] = u[g];
    const Scales scales = T::scales(p);
    even[i] = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(scales.scale));
    odd[i] = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(scales.scale, 1));
    min[i] = scales.min;
  }
  transpose8(even);
  transpose8(odd);
  transpose8(min);
  const __m256i low = _mm256_set1_epi32(0xffff);
  for (size_t g = 0; g < 8; ++g) {
    transpose8(codes[g]);
    for (size_t k = 0; k < 8; ++k) store32_aligned(strip.codes[s][g][k][v], codes[g][k]);
    store32_aligned(strip.scale[s][2 * g][v],
                    _mm256_or_si256(_mm256_and_si256(even[g], low), _mm256_slli_epi32(even[g], 16)));
    store32_aligned(strip.scale[s][2 * g + 1][v],
                    _mm256_or_si256(_mm256_and_si256(odd[g], low), _mm256_slli_epi32(odd[g], 16)));
  }
  for (size_t g = 0; g < kMinPairs<T>; ++g) {
    const __m256i pair = kMinPairs<T> == 8 ? min[g] : _mm256_blend_epi16(min[2 * g], min[2 * g + 1], 0xaa);
    store32_aligned(strip.min[s][g][v], pair);
  }
}

// Super-blocks s0 .. s0 + count of rows 8 v ... Rows past the last repeat it: their results are not kept.
template <class T>
void unpack_rows(const std::byte* weights, size_t rows, size_t row_bytes, size_t s0, size_t count, size_t v,
                 Strip& strip) {
  const std::byte* row[8];
  for (size_t i = 0; i < 8; ++i) {
    const size_t r = 8 * v + i < rows ? 8 * v + i : rows - 1;
    row[i] = weights + r * row_bytes + s0 * T::kBytes;
  }
  for (size_t s = 0; s < count; ++s) {
    unpack_block<T>(row, s, v, strip);
    uint64_t d[2] = {}, dmin[2] = {};
    for (size_t i = 0; i < 8; ++i) {
      const std::byte* p = row[i] + s * T::kBytes + T::kScale;
      d[i / 4] |= static_cast<uint64_t>(load_u16(p)) << (16 * (i % 4));
      if constexpr (T::kMin) dmin[i / 4] |= static_cast<uint64_t>(load_u16(p + 2)) << (16 * (i % 4));
    }
    _mm256_store_ps(strip.d[s][v], _mm256_cvtph_ps(load16(d)));
    _mm256_store_ps(strip.dmin[s][v], _mm256_cvtph_ps(load16(dmin)));
  }
}

// Scaled sums of the codes of super-block s for kCols columns. A function of its own: inlined, the
// compiler runs out of registers for what follows.
template <class T, size_t kCols>
[[gnu::noinline]] void dot_block(const Strip& strip, size_t s, const int8_t* q, size_t act_bytes,
                                 __m256i (*sums)[kVectors]) {
  __m256i total[kCols][kVectors];
  repeat<kCols>([&](auto c) { repeat<kVectors>([&](auto v) { total[c][v] = _mm256_setzero_si256(); }); });
#pragma GCC unroll 1
  for (size_t g = 0; g < 8; ++g, q += 32) {
    repeat<8 / T::kRun>([&](auto part) {
      constexpr size_t k0 = part * T::kRun;
      __m256i run[kCols][kVectors];
      repeat<T::kRun>([&](auto i) {
        __m256i w[kVectors];
        repeat<kVectors>([&](auto v) { w[v] = load32_aligned(strip.codes[s][g][k0 + i][v]); });
        repeat<kCols>([&](auto c) {
          const __m256i a = _mm256_set1_epi32(load_i32(q + c * act_bytes + 4 * (k0 + i)));
          repeat<kVectors>([&](auto v) {
            const __m256i p = pairs<T>(w[v], a);
            run[c][v] = i == 0 ? p : _mm256_add_epi16(run[c][v], p);
          });
        });
      });
      repeat<kVectors>([&](auto v) {
        const __m256i scale = load32_aligned(strip.scale[s][2 * g + (T::kGroup == 16 ? k0 / 4 : 0)][v]);
        repeat<kCols>([&](auto c) {
          total[c][v] = _mm256_add_epi32(total[c][v], _mm256_madd_epi16(run[c][v], scale));
        });
      });
    });
  }
  repeat<kCols>([&](auto c) { repeat<kVectors>([&](auto v) { sums[c][v] = total[c][v]; }); });
}

// Minima and scales of super-block s of one column: the integer sum goes to its lane.
template <class T>
inline void finish_block(const Strip& strip, const Act256& act, size_t block, size_t s, const __m256i* sums,
                         __m256 (*acc)[4]) {
  alignas(32) int16_t pairs_of_sums[16];
  const __m256i sum = load32(act.sum + 16 * block);
  if constexpr (kMinPairs<T> == 4) {  // of 32 elements
    const __m256i wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    _mm_store_si128(reinterpret_cast<__m128i*>(pairs_of_sums),
                    _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
  } else {
    store32_aligned(pairs_of_sums, sum);
  }
  const __m256 scale = _mm256_set1_ps(act.scale[block]);
  repeat<kVectors>([&](auto v) {
    __m256i min = _mm256_setzero_si256();
    if constexpr (!T::kSigned) {
      repeat<kMinPairs<T>>([&](auto g) {
        const __m256i pair = _mm256_set1_epi32(load_i32(pairs_of_sums + 2 * g));
        min = _mm256_add_epi32(min, _mm256_madd_epi16(load32_aligned(strip.min[s][g][v]), pair));
      });
    }
    const __m256i dot = T::kMin ? sums[v] : _mm256_sub_epi32(sums[v], min);
    __m256 x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(_mm256_load_ps(strip.d[s][v]), scale),
                               acc[v][s % 4]);
    if constexpr (T::kMin) {
      const __m256 dmin = _mm256_mul_ps(_mm256_load_ps(strip.dmin[s][v]), scale);
      x = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(min), dmin, x);
    }
    acc[v][s % 4] = x;
  });
}

// A piece of the strip times kCols columns, of which `acts` is the first.
template <class T, size_t kCols>
void tile(const Strip& strip, size_t rows, size_t n, const std::byte* acts, size_t s0, size_t count,
          float* out, size_t ldo) {
  const size_t act_bytes = act256_bytes(n);
  __m256 acc[kCols][kVectors][4];
  __builtin_memset(acc, 0, sizeof acc);
  for (size_t s = 0; s < count; ++s) {
    __m256i sums[kCols][kVectors];
    dot_block<T, kCols>(strip, s, reinterpret_cast<const int8_t*>(acts) + 256 * (s0 + s), act_bytes, sums);
    for (size_t c = 0; c < kCols; ++c)
      finish_block<T>(strip, act256(acts + c * act_bytes, n), s0 + s, s, sums[c], acc[c]);
  }
  for (size_t c = 0; c < kCols; ++c) {
    for (size_t v = 0; v < kVectors && 8 * v < rows; ++v)
      put_sums(out + c * ldo + 8 * v, rows - 8 * v, sum_lanes(acc[c][v], 4), s0 == 0);
  }
}

template <class T>
void many_columns(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
                  float* out, size_t ldo) {
  const size_t n_blocks = n / 256, row_bytes = n_blocks * T::kBytes, act_bytes = act256_bytes(n);
  Strip strip;
  for (size_t r = 0; r < n_rows; r += kStripRows) {
    const size_t rows = n_rows - r < kStripRows ? n_rows - r : kStripRows;
    for (size_t s0 = 0; s0 < n_blocks; s0 += kPieceBlocks) {
      const size_t count = n_blocks - s0 < kPieceBlocks ? n_blocks - s0 : kPieceBlocks;
      for (size_t v = 0; v < kVectors; ++v)
        unpack_rows<T>(weights + r * row_bytes, rows, row_bytes, s0, count, v, strip);
      size_t c = 0;
      for (; c + kTileColumns <= n_cols; c += kTileColumns)
        tile<T, kTileColumns>(strip, rows, n, acts + c * act_bytes, s0, count, out + c * ldo + r, ldo);
      for (; c < n_cols; ++c)
        tile<T, 1>(strip, rows, n, acts + c * act_bytes, s0, count, out + c * ldo + r, ldo);
    }
  }
}

template <class T>
void matmul(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
            float* out, size_t ldo) {
  if (n_cols >= kManyColumns) {
    many_columns<T>(weights, n_rows, n, acts, n_cols, out, ldo);
    return;
  }
  const size_t act_bytes = act256_bytes(n);
  for (size_t c = 0; c < n_cols; c += 2) {
    const Act256 act[2] = {act256(acts + c * act_bytes, n),
                           act256(acts + (c + 1 < n_cols ? c + 1 : c) * act_bytes, n)};
    if (c + 1 < n_cols) {
      few_columns<T, 2>(weights, n_rows, n, act, out + c * ldo, ldo);
    } else {
      few_columns<T, 1>(weights, n_rows, n, act, out + c * ldo, ldo);
    }
  }
}

}  // namespace

Matmul matmul_256(quant::Type type) {
  switch (type) {
    case quant::Type::q2_k:
      return matmul<Q2K>;
    case quant::Type::q3_k:
      return matmul<Q3K>;
    case quant::Type::q4_k:
      return matmul<Q4K>;
    case quant::Type::q5_k:
      return matmul<Q5K>;
    case quant::Type::q6_k:
      return matmul<Q6K>;
    case quant::Type::iq4_xs:
      return matmul<Iq4Xs>;
    default:
      return nullptr;
  }
}

}  // namespace selm::kernels::avx2

#endif
