// Products of the 32-element types, AVX2. The plan is that of avx512_q32.cpp with 8 lanes (block b
// of a piece in lane b mod 8) and 16 rows a strip; bytes are multiplied in pairs into 16 bits, so
// codes are kept small enough, or signed, for no pair to saturate.
#include "kernels/avx2.h"

#if defined(__x86_64__)

namespace selm::kernels::avx2 {
namespace {

constexpr size_t kPieceBlocks = kPiece / 32;

// Codes of 2 blocks: 128-bit lane i holds elements 0-15 (low) and 16-31 (high) of block i.
struct Codes {
  __m256i low, high;
};

inline __m256i load_2x16(const std::byte* p, size_t stride) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + stride), 1);
}

inline Codes nibbles(const std::byte* p, size_t stride) {
  const __m256i x = load_2x16(p, stride), mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16(x, 4), mask)};
}

// 16 in the bytes whose bit is set: bits 0-15 to the bytes of the low lane, 16-31 to the high one.
inline __m256i spread_bits(uint32_t low, uint32_t high) {
  const __m256i bits =
      _mm256_setr_m128i(_mm_set1_epi32(static_cast<int>(low)), _mm_set1_epi32(static_cast<int>(high)));
  const __m256i bytes =
      _mm256_shuffle_epi8(bits, _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0,
                                                 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), _mm256_set1_epi8(16));
}

inline Codes five_bits(const std::byte* bits, const std::byte* qs, size_t stride) {
  const Codes x = nibbles(qs, stride);
  return {_mm256_or_si256(x.low, spread_bits(load_u16(bits), load_u16(bits + stride))),
          _mm256_or_si256(x.high, spread_bits(load_u16(bits + 2), load_u16(bits + stride + 2)))};
}

// A type: bytes of a block; log2 of the zero point (-1: none); whether blocks have a minimum (the
// half behind the scale); whether codes are signed; how many pairs add up in 16 bits; 2 blocks' codes.
struct Q4_0 {
  static constexpr size_t kBytes = 18, kRun = 8;
  static constexpr int kZero = 3;
  static constexpr bool kMin = false, kSigned = false;
  static Codes load2(const std::byte* p) { return nibbles(p + 2, kBytes); }
};
struct Q4_1 {
  static constexpr size_t kBytes = 20, kRun = 8;
  static constexpr int kZero = -1;
  static constexpr bool kMin = true, kSigned = false;
  static Codes load2(const std::byte* p) { return nibbles(p + 4, kBytes); }
};
struct Q5_0 {
  static constexpr size_t kBytes = 22, kRun = 4;
  static constexpr int kZero = 4;
  static constexpr bool kMin = false, kSigned = false;
  static Codes load2(const std::byte* p) { return five_bits(p + 2, p + 6, kBytes); }
};
struct Q5_1 {
  static constexpr size_t kBytes = 24, kRun = 4;
  static constexpr int kZero = -1;
  static constexpr bool kMin = true, kSigned = false;
  static Codes load2(const std::byte* p) { return five_bits(p + 4, p + 8, kBytes); }
};
struct Q8_0 {
  static constexpr size_t kBytes = 34, kRun = 1;
  static constexpr int kZero = -1;
  static constexpr bool kMin = false, kSigned = true;
  static Codes load2(const std::byte* p) { return {load_2x16(p + 2, kBytes), load_2x16(p + 18, kBytes)}; }
};
struct Iq4Nl {
  static constexpr size_t kBytes = 18, kRun = 1;
  static constexpr int kZero = -1;
  static constexpr bool kMin = false, kSigned = true;
  static Codes load2(const std::byte* p) {
    const Codes x = nibbles(p + 2, kBytes);
    const __m256i values = _mm256_broadcastsi128_si256(  // quant::kIq4Values
        _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113));
    return {_mm256_shuffle_epi8(values, x.low), _mm256_shuffle_epi8(values, x.high)};
  }
};

// As load2 where one block is left; never reads past it.
template <class T>
inline Codes load_last(const std::byte* p) {
  alignas(32) std::byte copy[2 * T::kBytes] = {};
  __builtin_memcpy(copy, p, T::kBytes);
  return T::load2(copy);
}

inline __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

template <class T>
inline __m256i pairs(__m256i w, __m256i a) {
  if constexpr (T::kSigned) return pairs_signed(w, a);
  return _mm256_maddubs_epi16(w, a);
}

// ---- Few columns: lanes are blocks --------------------------------------------------------------

// Lane l: sum of the four dwords in 128-bit lane l % 2 of p[l / 2].
inline __m256i sum_blocks(const __m256i* p) {
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(p[0], p[1]), _mm256_unpackhi_epi32(p[0], p[1]));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(p[2], p[3]), _mm256_unpackhi_epi32(p[2], p[3]));
  const __m256i sum = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  return _mm256_permutevar8x32_epi32(sum, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

inline __m256 load_8_halves(const std::byte* p, size_t stride, size_t count) {
  const __m128 high = count > 4 ? load_halves(p + 4 * stride, stride, count - 4) : _mm_setzero_ps();
  return _mm256_set_m128(high, load_halves(p, stride, count));
}

// 8 blocks (`blocks` of them exist) against kCols columns: acc[c] receives its 8 lanes.
template <class T, int kCols, bool kFull>
inline void add_chunk(const std::byte* w, size_t blocks, const Act32* acts, size_t b0, __m256* acc) {
  prefetch<8 * T::kBytes>(w);
  if (kFull) blocks = 8;
  __m256i p[kCols][4];
#pragma GCC unroll 4
  for (size_t g = 0; g < 4; ++g) {
    if (!kFull && 2 * g >= blocks) {
      for (int c = 0; c < kCols; ++c) p[c][g] = _mm256_setzero_si256();
      continue;
    }
    const std::byte* source = w + 2 * g * T::kBytes;
    const Codes u = kFull || blocks - 2 * g >= 2 ? T::load2(source) : load_last<T>(source);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const int8_t* q = acts[c].q + 32 * (b0 + 2 * g);
      const __m256i x = load32(q), y = load32(q + 32);
      const __m256i low = pairs<T>(u.low, _mm256_permute2x128_si256(x, y, 0x20));
      const __m256i high = pairs<T>(u.high, _mm256_permute2x128_si256(x, y, 0x31));
      p[c][g] = T::kRun >= 2 ? widen(_mm256_add_epi16(low, high)) : _mm256_add_epi32(widen(low), widen(high));
    }
  }
  const __m256 d = load_8_halves(w, T::kBytes, blocks);
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    const __m256i sum = load32(acts[c].sum + b0);
    const __m256 scale = _mm256_loadu_ps(acts[c].scale + b0);
    __m256i dot = sum_blocks(p[c]);
    if constexpr (T::kZero >= 0) dot = _mm256_sub_epi32(dot, _mm256_slli_epi32(sum, T::kZero));
    acc[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, scale), acc[c]);
    if constexpr (T::kMin) {
      const __m256 m = load_8_halves(w + 2, T::kBytes, blocks);
      acc[c] = _mm256_fmadd_ps(m, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)), acc[c]);
    }
  }
}

template <class T, int kCols>
void few_columns(const std::byte* weights, size_t n_rows, size_t n, const Act32* acts, float* out,
                 size_t ldo) {
  const size_t n_blocks = n / 32;
  for (size_t r = 0; r < n_rows; ++r) {
    const std::byte* row = weights + r * n_blocks * T::kBytes;
    for (size_t b0 = 0; b0 < n_blocks; b0 += kPieceBlocks) {
      const size_t end = n_blocks - b0 < kPieceBlocks ? n_blocks : b0 + kPieceBlocks;
      __m256 acc[kCols];
      for (int c = 0; c < kCols; ++c) acc[c] = _mm256_setzero_ps();
      size_t b = b0;
      for (; b + 8 <= end; b += 8) add_chunk<T, kCols, true>(row + b * T::kBytes, 8, acts, b, acc);
      if (b < end) add_chunk<T, kCols, false>(row + b * T::kBytes, end - b, acts, b, acc);
      for (size_t c = 0; c < kCols; ++c) {
        float* place = out + c * ldo + r;
        *place = b0 == 0 ? sum_lanes(acc[c]) : *place + sum_lanes(acc[c]);
      }
    }
  }
}

// ---- Many columns: lanes are rows ---------------------------------------------------------------

constexpr size_t kVectors = 2;  // of 8 rows
constexpr size_t kStripRows = 8 * kVectors;
constexpr size_t kTileColumns = 2;

// One piece of a strip of rows, unpacked: 4 codes of each of 8 rows make a vector.
struct Strip {
  alignas(32) uint8_t codes[kPieceBlocks][8][kVectors][32];  // [block, k / 4, row / 8, row * 4 + k % 4]
  alignas(32) float d[kPieceBlocks][kVectors][8];
  alignas(32) float m[kPieceBlocks][kVectors][8];  // only types with minima
};

// Blocks b0 .. b0 + count of rows 8 v ... Rows past the last repeat it: their results are not kept.
template <class T>
void unpack_rows(const std::byte* weights, size_t rows, size_t row_bytes, size_t b0, size_t count, size_t v,
                 Strip& strip) {
  const std::byte* row[8];
  for (size_t i = 0; i < 8; ++i) {
    const size_t r = 8 * v + i < rows ? 8 * v + i : rows - 1;
    row[i] = weights + r * row_bytes + b0 * T::kBytes;
  }
  for (size_t b = 0; b < count; b += 2) {
    __m256i low[8], high[8];
    for (size_t i = 0; i < 8; ++i) {
      const std::byte* p = row[i] + b * T::kBytes;
      const Codes u = count - b >= 2 ? T::load2(p) : load_last<T>(p);
      low[i] = u.low;
      high[i] = u.high;
    }
    transpose8(low);
    transpose8(high);
    for (size_t k = 0; k < 8 && b + k / 4 < count; ++k) {
      store32_aligned(strip.codes[b + k / 4][k % 4][v], low[k]);
      store32_aligned(strip.codes[b + k / 4][4 + k % 4][v], high[k]);
    }
  }
  for (size_t b = 0; b < count; ++b) {
    uint64_t d[2] = {}, m[2] = {};
    for (size_t i = 0; i < 8; ++i) {
      const uint32_t head = load_u32(row[i] + b * T::kBytes);
      d[i / 4] |= static_cast<uint64_t>(head & 0xffffu) << (16 * (i % 4));
      m[i / 4] |= static_cast<uint64_t>(head >> 16) << (16 * (i % 4));
    }
    _mm256_store_ps(strip.d[b][v], _mm256_cvtph_ps(load16(d)));
    if constexpr (T::kMin) _mm256_store_ps(strip.m[b][v], _mm256_cvtph_ps(load16(m)));
  }
}

// Integer sums of block b for kCols columns, of which q is the first.
template <class T, size_t kCols>
inline void dot_block(const Strip& strip, size_t b, const int8_t* q, size_t act_bytes,
                      __m256i (*dot)[kVectors]) {
  repeat<8 / T::kRun>([&](auto part) {
    constexpr size_t k0 = part * T::kRun;
    __m256i run[kCols][kVectors];
    repeat<T::kRun>([&](auto i) {
      __m256i w[kVectors];
      repeat<kVectors>([&](auto v) { w[v] = load32_aligned(strip.codes[b][k0 + i][v]); });
      repeat<kCols>([&](auto c) {
        const __m256i a = _mm256_set1_epi32(load_i32(q + c * act_bytes + 4 * (k0 + i)));
        repeat<kVectors>([&](auto v) {
          const __m256i p = pairs<T>(w[v], a);
          run[c][v] = i == 0 ? p : _mm256_add_epi16(run[c][v], p);
        });
      });
    });
    repeat<kCols>([&](auto c) {
      repeat<kVectors>([&](auto v) {
        const __m256i sum = widen(run[c][v]);
        dot[c][v] = part == 0 ? sum : _mm256_add_epi32(dot[c][v], sum);
      });
    });
  });
}

// Blocks b0 .. b0 + count of kCols columns, of which `acts` is the first: acc[c][v][b % 8].
template <class T, size_t kCols>
[[gnu::noinline]] void add_blocks(const Strip& strip, size_t n, const std::byte* acts, size_t b0,
                                  size_t count, __m256 (*acc)[kVectors][8]) {
  const size_t act_bytes = act32_bytes(n);
  const Act32 first = act32(acts, n);
#pragma GCC unroll 1
  for (size_t b = 0; b < count; ++b) {
    __m256i dot[kCols][kVectors];
    dot_block<T, kCols>(strip, b, first.q + 32 * (b0 + b), act_bytes, dot);
    repeat<kCols>([&](auto c) {
      const Act32 act = act32(acts + c * act_bytes, n);
      const int32_t sum = act.sum[b0 + b];
      const float scale = act.scale[b0 + b];
      repeat<kVectors>([&](auto v) {
        __m256i x = dot[c][v];
        if constexpr (T::kZero >= 0) x = _mm256_sub_epi32(x, _mm256_set1_epi32(sum * (1 << T::kZero)));
        __m256& lane = acc[c][v][b % 8];
        const __m256 d = _mm256_mul_ps(_mm256_load_ps(strip.d[b][v]), _mm256_set1_ps(scale));
        lane = _mm256_fmadd_ps(_mm256_cvtepi32_ps(x), d, lane);
        if constexpr (T::kMin) {
          const __m256 scaled = _mm256_set1_ps(scale * static_cast<float>(sum));
          lane = _mm256_fmadd_ps(_mm256_load_ps(strip.m[b][v]), scaled, lane);
        }
      });
    });
  }
}

// A piece of the strip times kCols columns, of which `acts` is the first.
template <class T, size_t kCols>
void tile(const Strip& strip, size_t rows, size_t n, const std::byte* acts, size_t b0, size_t count,
          float* out, size_t ldo) {
  __m256 acc[kCols][kVectors][8];
  __builtin_memset(acc, 0, sizeof acc);
  add_blocks<T, kCols>(strip, n, acts, b0, count, acc);
  for (size_t c = 0; c < kCols; ++c) {
    for (size_t v = 0; v < kVectors && 8 * v < rows; ++v)
      put_sums(out + c * ldo + 8 * v, rows - 8 * v, sum_lanes(acc[c][v], 8), b0 == 0);
  }
}

template <class T>
void many_columns(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
                  float* out, size_t ldo) {
  const size_t n_blocks = n / 32, row_bytes = n_blocks * T::kBytes, act_bytes = act32_bytes(n);
  Strip strip;
  for (size_t r = 0; r < n_rows; r += kStripRows) {
    const size_t rows = n_rows - r < kStripRows ? n_rows - r : kStripRows;
    for (size_t b0 = 0; b0 < n_blocks; b0 += kPieceBlocks) {
      const size_t count = n_blocks - b0 < kPieceBlocks ? n_blocks - b0 : kPieceBlocks;
      for (size_t v = 0; v < kVectors; ++v)
        unpack_rows<T>(weights + r * row_bytes, rows, row_bytes, b0, count, v, strip);
      size_t c = 0;
      for (; c + kTileColumns <= n_cols; c += kTileColumns)
        tile<T, kTileColumns>(strip, rows, n, acts + c * act_bytes, b0, count, out + c * ldo + r, ldo);
      for (; c < n_cols; ++c)
        tile<T, 1>(strip, rows, n, acts + c * act_bytes, b0, count, out + c * ldo + r, ldo);
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
  const size_t act_bytes = act32_bytes(n);
  for (size_t c = 0; c < n_cols; c += 2) {
    const Act32 act[2] = {act32(acts + c * act_bytes, n),
                          act32(acts + (c + 1 < n_cols ? c + 1 : c) * act_bytes, n)};
    if (c + 1 < n_cols) {
      few_columns<T, 2>(weights, n_rows, n, act, out + c * ldo, ldo);
    } else {
      few_columns<T, 1>(weights, n_rows, n, act, out + c * ldo, ldo);
    }
  }
}

}  // namespace

Matmul matmul_32(quant::Type type) {
  switch (type) {
    case quant::Type::q4_0:
      return matmul<Q4_0>;
    case quant::Type::q4_1:
      return matmul<Q4_1>;
    case quant::Type::q5_0:
      return matmul<Q5_0>;
    case quant::Type::q5_1:
      return matmul<Q5_1>;
    case quant::Type::q8_0:
      return matmul<Q8_0>;
    case quant::Type::iq4_nl:
      return matmul<Iq4Nl>;
    default:
      return nullptr;
  }
}

}  // namespace selm::kernels::avx2

#endif
