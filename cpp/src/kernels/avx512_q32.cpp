// Products of the 32-element types, AVX-512 VNNI.
//
// One output: blocks b of a piece (kPiece elements) go to 8 lanes, l = b mod 8:
//   lane += float(sum_i w_i a_i) * (d_w * d_a)   [and += m_w * (d_a * sum_i a_i)]
// then the lanes are summed (sum_lanes) and added to the output, piece after piece. The integer sum
// is exact: codes are taken unsigned, and the zero point comes off by the sum of the activations.
// `few_columns` runs lanes across the blocks of one row; `many_columns` across 16 rows. Same bits.
#include "kernels/avx512.h"
#include "kernels/avx512_q32_types.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

constexpr size_t kPieceBlocks = kPiece / 32;
constexpr size_t kLanes = 8;

// ---- Few columns: lanes are blocks --------------------------------------------------------------

// Lane l: sum of the four dwords in 128-bit lane l % 4 of p[l / 4].
inline __m512i sum_blocks(const __m512i* p) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
  const __m512i sum = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                  sum);
}

// 16 blocks (`blocks` of them exist) against kCols columns: acc[c] receives blocks 0-7, then 8-15.
template <class T, int kCols, bool kFull>
inline void add_chunk(const std::byte* w, size_t blocks, const Act32* acts, size_t b0, __m256* acc) {
  prefetch<16 * T::kBytes>(w);
  __m512i p[kCols][4];
#pragma GCC unroll 4
  for (size_t g = 0; g < 4; ++g) {
    if (!kFull && 4 * g >= blocks) {
      for (int c = 0; c < kCols; ++c) p[c][g] = _mm512_setzero_si512();
      continue;
    }
    const std::byte* source = w + 4 * g * T::kBytes;
    const Codes u = kFull || blocks - 4 * g >= 4 ? T::load4(source) : load_rest<T>(source, blocks - 4 * g);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const int8_t* q = acts[c].q + 32 * (b0 + 4 * g);
      const __m512i x = load64(q), y = load64(q + 64);  // 128-bit lanes: low, high, low, high
      const __m512i low = _mm512_shuffle_i64x2(x, y, 0x88), high = _mm512_shuffle_i64x2(x, y, 0xdd);
      p[c][g] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), u.low, low), u.high, high);
    }
  }
  constexpr int kStep = T::kBytes;
  const __m512i offsets =
      _mm512_setr_epi32(0, kStep, 2 * kStep, 3 * kStep, 4 * kStep, 5 * kStep, 6 * kStep, 7 * kStep, 8 * kStep,
                        9 * kStep, 10 * kStep, 11 * kStep, 12 * kStep, 13 * kStep, 14 * kStep, 15 * kStep);
  const __m512i heads =
      kFull ? _mm512_i32gather_epi32(offsets, w, 1)
            : _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), first_lanes(blocks), offsets, w, 1);
  const __m512 d = low_halves(heads);
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    const __m512i sum = load64(acts[c].sum + b0);
    const __m512 scale = _mm512_loadu_ps(acts[c].scale + b0);
    __m512i dot = sum_blocks(p[c]);
    if constexpr (T::kZero >= 0) dot = _mm512_sub_epi32(dot, _mm512_slli_epi32(sum, T::kZero));
    const __m512 x = _mm512_cvtepi32_ps(dot), y = _mm512_mul_ps(d, scale);
    if constexpr (T::kMin) {
      const __m512 m = high_halves(heads), z = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum));
      acc[c] = _mm256_fmadd_ps(low_half(m), low_half(z), _mm256_fmadd_ps(low_half(x), low_half(y), acc[c]));
      acc[c] =
          _mm256_fmadd_ps(high_half(m), high_half(z), _mm256_fmadd_ps(high_half(x), high_half(y), acc[c]));
    } else {
      acc[c] = _mm256_fmadd_ps(low_half(x), low_half(y), acc[c]);
      acc[c] = _mm256_fmadd_ps(high_half(x), high_half(y), acc[c]);
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
      for (; b + 16 <= end; b += 16) add_chunk<T, kCols, true>(row + b * T::kBytes, 16, acts, b, acc);
      if (b < end) add_chunk<T, kCols, false>(row + b * T::kBytes, end - b, acts, b, acc);
      for (size_t c = 0; c < kCols; ++c) {
        float* place = out + c * ldo + r;
        *place = b0 == 0 ? sum_lanes(acc[c]) : *place + sum_lanes(acc[c]);
      }
    }
  }
}

// ---- Many columns: lanes are rows ---------------------------------------------------------------

constexpr size_t kVectors = 2;  // of 16 rows
constexpr size_t kStripRows = 16 * kVectors;
constexpr size_t kTileColumns = 16;

// One piece of a strip of rows, unpacked: 4 codes of each of 16 rows make a vector.
struct Strip {
  alignas(64) uint8_t codes[kPieceBlocks][kVectors][8][64];  // [block, rows / 16, k / 4, row * 4 + k % 4]
  alignas(64) float d[kPieceBlocks][kVectors][16];
  alignas(64) float m[kPieceBlocks][kVectors][16];  // only types with minima
};

// Blocks b0 .. b0 + count of rows v * 16 ... Rows past the last repeat it: their results are not kept.
template <class T>
void unpack_rows(const std::byte* weights, size_t rows, size_t row_bytes, size_t b0, size_t count, size_t v,
                 Strip& strip) {
  const std::byte* row[16];
  alignas(64) int32_t offsets[16];
  for (size_t i = 0; i < 16; ++i) {
    const size_t r = v * 16 + i < rows ? v * 16 + i : rows - 1;
    row[i] = weights + r * row_bytes + b0 * T::kBytes;
    offsets[i] = static_cast<int32_t>(r * row_bytes);
  }
  for (size_t b = 0; b < count; b += 4) {
    __m512i low[16], high[16];
    for (size_t i = 0; i < 16; ++i) {
      const std::byte* p = row[i] + b * T::kBytes;
      const Codes u = count - b >= 4 ? T::load4(p) : load_rest<T>(p, count - b);
      low[i] = u.low;
      high[i] = u.high;
    }
    transpose16(low);
    transpose16(high);
    for (size_t k = 0; k < 16 && b + k / 4 < count; ++k) {
      _mm512_store_si512(strip.codes[b + k / 4][v][k % 4], low[k]);
      _mm512_store_si512(strip.codes[b + k / 4][v][4 + k % 4], high[k]);
    }
  }
  const __m512i offset = load64(offsets);
  for (size_t b = 0; b < count; ++b) {
    const __m512i heads = _mm512_i32gather_epi32(offset, weights + (b0 + b) * T::kBytes, 1);
    _mm512_store_ps(strip.d[b][v], low_halves(heads));
    if constexpr (T::kMin) _mm512_store_ps(strip.m[b][v], high_halves(heads));
  }
}

// What a block of a column adds or takes beside the products of codes.
struct Corrections {
  alignas(64) int32_t zero[kTileColumns][kPieceBlocks];  // -zero point * sum
  alignas(64) float sum[kTileColumns][kPieceBlocks];     // d_a * sum
};

template <class T>
void correct(const Act32* acts, size_t n_cols, size_t b0, size_t count, Corrections& out) {
  for (size_t c = 0; c < n_cols; ++c) {
    for (size_t b = 0; b < count; b += 16) {
      const __m512i sum = load64(acts[c].sum + b0 + b);
      if constexpr (T::kZero >= 0) {
        const __m512i zero = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, T::kZero));
        _mm512_store_si512(out.zero[c] + b, zero);
      }
      if constexpr (T::kMin) {
        const __m512 scale = _mm512_loadu_ps(acts[c].scale + b0 + b);
        _mm512_store_ps(out.sum[c] + b, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)));
      }
    }
  }
}

// Lanes first: what one block touches lies together. (Columns a multiple of 4096 bytes apart would
// make loads wait for stores that only look like theirs.)
using Lanes = __m512[kLanes][kTileColumns][kVectors];

// acc[b % kLanes][c][v] of columns c .. c + kCols of one block. Four columns make 8 chains of sums, enough
// to keep the multipliers busy.
template <class T, size_t kCols>
inline void add_columns(const Strip& strip, const __m512i (*w)[8], const Corrections& fix, const Act32* acts,
                        size_t b0, size_t b, size_t c0, Lanes& acc) {
  __m512i dot[kCols][kVectors];
#pragma GCC unroll 4
  for (size_t c = 0; c < kCols; ++c) {
    dot[c][0] = T::kZero >= 0 ? _mm512_set1_epi32(fix.zero[c0 + c][b]) : _mm512_setzero_si512();
    dot[c][1] = dot[c][0];
  }
#pragma GCC unroll 8
  for (size_t k = 0; k < 8; ++k) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) {
      const __m512i a = _mm512_set1_epi32(load_i32(acts[c0 + c].q + 32 * (b0 + b) + 4 * k));
      dot[c][0] = _mm512_dpbusd_epi32(dot[c][0], w[0][k], a);
      dot[c][1] = _mm512_dpbusd_epi32(dot[c][1], w[1][k], a);
    }
  }
#pragma GCC unroll 4
  for (size_t c = 0; c < kCols; ++c) {
    const __m512 scale = _mm512_set1_ps(acts[c0 + c].scale[b0 + b]);
#pragma GCC unroll 2
    for (size_t v = 0; v < kVectors; ++v) {
      __m512& lane = acc[b % kLanes][c0 + c][v];
      const __m512 d = _mm512_mul_ps(_mm512_load_ps(strip.d[b][v]), scale);
      __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[c][v]), d, lane);
      if constexpr (T::kMin) {
        x = _mm512_fmadd_ps(_mm512_load_ps(strip.m[b][v]), _mm512_set1_ps(fix.sum[c0 + c][b]), x);
      }
      lane = x;
    }
  }
}

// One block: its 16 weight vectors stay in registers for all columns.
template <class T>
inline void add_block(const Strip& strip, const Corrections& fix, const Act32* acts, size_t n_cols, size_t b0,
                      size_t b, Lanes& acc) {
  __m512i w[kVectors][8];
#pragma GCC unroll 2
  for (size_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (size_t k = 0; k < 8; ++k) w[v][k] = _mm512_load_si512(strip.codes[b][v][k]);
  }
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) add_columns<T, 4>(strip, w, fix, acts, b0, b, c, acc);
  for (; c < n_cols; ++c) add_columns<T, 1>(strip, w, fix, acts, b0, b, c, acc);
}

template <class T>
void tile(const Strip& strip, size_t rows, const Act32* acts, size_t n_cols, size_t b0, size_t count,
          float* out, size_t ldo) {
  Corrections fix;
  correct<T>(acts, n_cols, b0, count, fix);
  Lanes acc;
  __builtin_memset(acc, 0, sizeof acc);
  for (size_t b = 0; b < count; ++b) add_block<T>(strip, fix, acts, n_cols, b0, b, acc);
  for (size_t c = 0; c < n_cols; ++c) {
    for (size_t v = 0; v < kVectors && v * 16 < rows; ++v) {
      const __m512 sum = sum_lanes(&acc[0][c][v], kLanes, kTileColumns * kVectors);
      put_sums(out + c * ldo + v * 16, rows - v * 16, sum, b0 == 0);
    }
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
      for (size_t v = 0; v < kVectors; ++v) {
        unpack_rows<T>(weights + r * row_bytes, rows, row_bytes, b0, count, v, strip);
      }
      for (size_t c = 0; c < n_cols; c += kTileColumns) {
        const size_t cols = n_cols - c < kTileColumns ? n_cols - c : kTileColumns;
        Act32 act[kTileColumns];
        for (size_t i = 0; i < cols; ++i) act[i] = act32(acts + (c + i) * act_bytes, n);
        tile<T>(strip, rows, act, cols, b0, count, out + c * ldo + r, ldo);
      }
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
  for (size_t c = 0; c < n_cols; c += 4) {
    const size_t cols = n_cols - c < 4 ? n_cols - c : 4;
    Act32 act[4];
    for (size_t i = 0; i < cols; ++i) act[i] = act32(acts + (c + i) * act_bytes, n);
    float* place = out + c * ldo;
    switch (cols) {
      case 1:
        few_columns<T, 1>(weights, n_rows, n, act, place, ldo);
        break;
      case 2:
        few_columns<T, 2>(weights, n_rows, n, act, place, ldo);
        break;
      case 3:
        few_columns<T, 3>(weights, n_rows, n, act, place, ldo);
        break;
      default:
        few_columns<T, 4>(weights, n_rows, n, act, place, ldo);
        break;
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

}  // namespace selm::kernels::avx512

#endif
