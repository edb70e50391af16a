// Products of the 256-element types, AVX-512 VNNI.
//
// One output: super-blocks s of a piece (kPiece elements) go to 4 lanes, l = s mod 4:
//   lane += float(sum_g scale_g (sum_i code_i a_i)) * (d_w * d_a)
//   lane -= float(sum_g min_g (sum_i a_i)) * (dmin_w * d_a)       [types with minima]
// then the lanes are summed and added to the output, piece after piece. Both integer sums are exact
// (below 2^29); a zero point z is a minimum of z * scale_g taken off inside the first sum.
// `few_columns` runs lanes along a row, `many_columns` across 16 rows. Same bits.
#include "kernels/avx512.h"
#include "kernels/avx512_k_types.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

constexpr size_t kPieceBlocks = kPiece / 256;

// ---- Few columns: lanes run along the row --------------------------------------------------------

// A block's scales beside its code vectors, and its minima.
struct Spread {
  __m512i scale[4];  // for each int16 (2 elements), or each int32 (4) of wide types
  __m256i min;       // int16 x 16
};

// Which of 16 scales belongs to each int16 or int32 of the code vectors; of 8 in bytes, for shuffles
// (where 0x80 gives zero).
template <class T>
struct Indices {
  alignas(64) uint16_t pairs[4][32];
  alignas(64) uint32_t quads[4][16];
  alignas(64) uint8_t bytes[4][64];
  alignas(32) uint8_t min_bytes[32];
};
template <class T>
constexpr Indices<T> make_indices() {
  Indices<T> x{};
  for (size_t j = 0; j < 4; ++j) {
    for (size_t t = 0; t < 32; ++t) {
      x.pairs[j][t] = static_cast<uint16_t>(2 * T::kOrder[j][t / 16] + static_cast<int>(t % 16 / 8));
      x.bytes[j][2 * t] = static_cast<uint8_t>(T::kOrder[j][t / 16]);
      x.bytes[j][2 * t + 1] = 0x80;
    }
    for (size_t t = 0; t < 16; ++t) x.quads[j][t] = x.pairs[j][2 * t];
  }
  for (size_t t = 0; t < 16; ++t) {
    x.min_bytes[2 * t] = static_cast<uint8_t>(t / 2);
    x.min_bytes[2 * t + 1] = 0x80;
  }
  return x;
}
template <class T>
constexpr Indices<T> kIndices = make_indices<T>();

template <class T>
inline Spread spread_scales(const std::byte* p) {
  Spread s;
  if constexpr (requires { T::kPacked; }) {
    const SixBits x = six_bits(p + T::kPacked);
    const __m512i bytes = _mm512_set1_epi64(static_cast<long long>(x.scales));
    repeat<4>([&](auto j) { s.scale[j] = _mm512_shuffle_epi8(bytes, load64(kIndices<T>.bytes[j])); });
    s.min = _mm256_shuffle_epi8(_mm256_set1_epi64x(static_cast<long long>(x.mins)),
                                load32(kIndices<T>.min_bytes));
  } else {
    const Scales scales = T::scales(p);
    const __m512i scale =
        T::kWide ? _mm512_cvtepi16_epi32(scales.scale) : _mm512_castsi256_si512(scales.scale);
    repeat<4>([&](auto j) {
      s.scale[j] = T::kWide ? _mm512_permutexvar_epi32(load64(kIndices<T>.quads[j]), scale)
                            : _mm512_permutexvar_epi16(load64(kIndices<T>.pairs[j]), scale);
    });
    s.min = scales.min;
  }
  return s;
}

// The activations that meet code vector j.
template <class T, int kVector>
inline __m512i load_act(const int8_t* q) {
  constexpr int kFirst = T::kOrder[kVector][0], kSecond = T::kOrder[kVector][1];
  if constexpr (kSecond == kFirst + 1) return load64(q + 32 * kFirst);
  return _mm512_inserti64x4(_mm512_castsi256_si512(load32(q + 32 * kFirst)), load32(q + 32 * kSecond), 1);
}

// One code vector times its activations and scales, summed to 16 int32.
template <class T, int kVector>
inline __m512i add_vector(__m512i sum, __m512i u, __m512i scale, const int8_t* q) {
  const __m512i a = load_act<T, kVector>(q);
  if constexpr (T::kWide) {
    const __m512i dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, a);
    return _mm512_add_epi32(sum, _mm512_mullo_epi32(dots, scale));
  } else {
    return _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(u, a), scale);
  }
}

// One super-block times one column: partial sums of codes and of minima, 8 int32 each.
struct Partial {
  __m256i dot, min;
};
template <class T>
inline Partial block_partial(const __m512i* u, const Spread& scales, const Act256& act, size_t s) {
  const int8_t* q = act.q + 256 * s;
  __m512i sum = add_vector<T, 0>(_mm512_setzero_si512(), u[0], scales.scale[0], q);
  sum = add_vector<T, 1>(sum, u[1], scales.scale[1], q);
  __m512i more = add_vector<T, 2>(_mm512_setzero_si512(), u[2], scales.scale[2], q);
  more = add_vector<T, 3>(more, u[3], scales.scale[3], q);
  sum = _mm512_add_epi32(sum, more);
  const __m256i dot = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
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

// The half at `offset` of each of 4 blocks (`blocks` of them exist).
template <class T>
inline __m128 load_halves(const std::byte* p, size_t blocks, size_t offset) {
  uint64_t halves = 0;
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    if (i < blocks) halves |= static_cast<uint64_t>(load_u16(p + i * T::kBytes + offset)) << (16 * i);
  }
  return _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<long long>(halves)));
}

// 4 super-blocks (`blocks` of them exist) against kCols columns.
template <class T, int kCols, bool kFull>
inline void add_chunk(const std::byte* w, size_t blocks, const Act256* acts, size_t s0, __m128* acc) {
  Partial part[kCols][4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    if (!kFull && i >= blocks) {
      for (int c = 0; c < kCols; ++c) part[c][i] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      continue;
    }
    const std::byte* p = w + i * T::kBytes;
    prefetch<T::kBytes>(p);
    __m512i u[4];
    T::codes(p, u);
    const Spread scales = spread_scales<T>(p);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) part[c][i] = block_partial<T>(u, scales, acts[c], s0 + i);
  }
  if (kFull) blocks = 4;
  const __m128 d = load_halves<T>(w, blocks, T::kScale);
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    const Partial* x = part[c];
    const __m128 scale = _mm_loadu_ps(acts[c].scale + s0);
    const __m128i dot = sum_4(x[0].dot, x[1].dot, x[2].dot, x[3].dot);
    acc[c] = _mm_fmadd_ps(_mm_cvtepi32_ps(dot), _mm_mul_ps(d, scale), acc[c]);
    if constexpr (T::kMin) {
      const __m128 dmin = load_halves<T>(w, blocks, T::kScale + 2);
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
        if (end - s >= 4) {
          add_chunk<T, kCols, true>(row + s * T::kBytes, 4, acts, s, acc);
        } else {
          add_chunk<T, kCols, false>(row + s * T::kBytes, end - s, acts, s, acc);
        }
      }
      for (size_t c = 0; c < kCols; ++c) {
        float* place = out + c * ldo + r;
        *place = s0 == 0 ? sum_lanes(acc[c]) : *place + sum_lanes(acc[c]);
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
  alignas(64)
      uint8_t codes[kPieceBlocks][8][kVectors][8][64];  // [s, group of 32, rows / 16, k / 4, row * 4 + k % 4]
  alignas(64) int32_t scale[kPieceBlocks][16][kVectors][16];
  alignas(64) int16_t min[kPieceBlocks][8][kVectors][32];  // two groups' minima side by side
  alignas(64) float d[kPieceBlocks][kVectors][16];
  alignas(64) float dmin[kPieceBlocks][kVectors][16];
};

// Super-block s of 16 rows.
template <class T>
void unpack_block(const std::byte* const* row, size_t s, size_t v, Strip& strip) {
  __m512i codes[4][16], scale[16], min[16];
  for (size_t i = 0; i < 16; ++i) {
    const std::byte* p = row[i] + s * T::kBytes;
    __m512i u[4];
    T::codes(p, u);
    for (size_t j = 0; j < 4; ++j) codes[j][i] = u[j];
    const Scales scales = T::scales(p);
    scale[i] = _mm512_cvtepi16_epi32(scales.scale);
    min[i] = _mm512_castsi256_si512(scales.min);
  }
  for (size_t j = 0; j < 4; ++j) {
    transpose16(codes[j]);
    for (size_t k = 0; k < 16; ++k) {
      const auto group = static_cast<size_t>(T::kOrder[j][k / 8]);
      _mm512_store_si512(strip.codes[s][group][v][k % 8], codes[j][k]);
    }
  }
  transpose16(scale);
  transpose16(min);
  for (size_t g = 0; g < 16; ++g) _mm512_store_si512(strip.scale[s][g][v], scale[g]);
  for (size_t g = 0; g < 8; ++g) _mm512_store_si512(strip.min[s][g][v], min[g]);
}

// Super-blocks s0 .. s0 + count of rows v * 16 ... Rows past the last repeat it: their results are
// not kept.
template <class T>
void unpack_rows(const std::byte* weights, size_t rows, size_t row_bytes, size_t s0, size_t count, size_t v,
                 Strip& strip) {
  const std::byte* row[16];
  alignas(64) int32_t offsets[16];
  for (size_t i = 0; i < 16; ++i) {
    const size_t r = v * 16 + i < rows ? v * 16 + i : rows - 1;
    row[i] = weights + r * row_bytes + s0 * T::kBytes;
    offsets[i] = static_cast<int32_t>(r * row_bytes);
  }
  // A lone scale at the end of a block is read as the upper half of a dword, to stay inside.
  constexpr bool kUpper = T::kScale + 4 > T::kBytes;
  const __m512i offset = load64(offsets);
  for (size_t s = 0; s < count; ++s) {
    unpack_block<T>(row, s, v, strip);
    const std::byte* place = weights + (s0 + s) * T::kBytes + T::kScale - (kUpper ? 2 : 0);
    const __m512i heads = _mm512_i32gather_epi32(offset, place, 1);
    _mm512_store_ps(strip.d[s][v], kUpper ? high_halves(heads) : low_halves(heads));
    if constexpr (T::kMin) _mm512_store_ps(strip.dmin[s][v], high_halves(heads));
  }
}

using Totals = __m512i[kTileColumns][kVectors];

// Adds group g of super-block s to columns c0 .. c0 + kCols. Four columns make 8 chains of sums,
// enough to keep the multipliers busy.
template <class T, size_t kCols>
inline void add_columns(const Strip& strip, const __m512i (*w)[8], const Act256* acts, size_t s0, size_t s,
                        size_t g, size_t c0, Totals& total) {
  constexpr size_t kSteps = T::kGroup / 4;
#pragma GCC unroll 2
  for (size_t k0 = 0; k0 < 8; k0 += kSteps) {
    __m512i dot[kCols][kVectors];
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) dot[c][0] = dot[c][1] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (size_t k = k0; k < k0 + kSteps; ++k) {
#pragma GCC unroll 4
      for (size_t c = 0; c < kCols; ++c) {
        const __m512i a = _mm512_set1_epi32(load_i32(acts[c0 + c].q + 256 * (s0 + s) + 32 * g + 4 * k));
        dot[c][0] = _mm512_dpbusd_epi32(dot[c][0], w[0][k], a);
        dot[c][1] = _mm512_dpbusd_epi32(dot[c][1], w[1][k], a);
      }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) {
#pragma GCC unroll 2
      for (size_t v = 0; v < kVectors; ++v) {
        const __m512i scale = _mm512_load_si512(strip.scale[s][2 * g + k0 / 4][v]);
        total[c0 + c][v] = _mm512_add_epi32(total[c0 + c][v], _mm512_mullo_epi32(dot[c][v], scale));
      }
    }
  }
}

// One group: its 16 weight vectors stay in registers for all columns.
template <class T>
inline void add_group(const Strip& strip, const Act256* acts, size_t n_cols, size_t s0, size_t s, size_t g,
                      Totals& total) {
  __m512i w[kVectors][8];
#pragma GCC unroll 2
  for (size_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (size_t k = 0; k < 8; ++k) w[v][k] = _mm512_load_si512(strip.codes[s][g][v][k]);
  }
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) add_columns<T, 4>(strip, w, acts, s0, s, g, c, total);
  for (; c < n_cols; ++c) add_columns<T, 1>(strip, w, acts, s0, s, g, c, total);
}

// Minima and scales of super-block s of one column: the integer total goes to its lane.
template <class T>
inline void finish_block(const Strip& strip, const Act256& act, size_t s0, size_t s, size_t v, __m512i total,
                         __m512& lane) {
  const int16_t* sums = act.sum + 16 * (s0 + s);
  const __m512 scale = _mm512_set1_ps(act.scale[s0 + s]);
  __m512i min = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (size_t g = 0; g < 8; ++g) {
    min = _mm512_dpwssd_epi32(min, _mm512_load_si512(strip.min[s][g][v]),
                              _mm512_set1_epi32(load_i32(sums + 2 * g)));
  }
  const __m512i dot = T::kMin ? total : _mm512_sub_epi32(total, min);
  const __m512 d = _mm512_mul_ps(_mm512_load_ps(strip.d[s][v]), scale);
  __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), d, lane);
  if constexpr (T::kMin) {
    const __m512 dmin = _mm512_mul_ps(_mm512_load_ps(strip.dmin[s][v]), scale);
    x = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(min), dmin, x);
  }
  lane = x;
}

template <class T>
void tile(const Strip& strip, size_t rows, const Act256* acts, size_t n_cols, size_t s0, size_t count,
          float* out, size_t ldo) {
  __m512 acc[kTileColumns][kVectors][4];
  __builtin_memset(acc, 0, sizeof acc);
  for (size_t s = 0; s < count; ++s) {
    Totals total;
    __builtin_memset(total, 0, sizeof total);
    for (size_t g = 0; g < 8; ++g) add_group<T>(strip, acts, n_cols, s0, s, g, total);
    for (size_t c = 0; c < n_cols; ++c) {
      finish_block<T>(strip, acts[c], s0, s, 0, total[c][0], acc[c][0][s % 4]);
      finish_block<T>(strip, acts[c], s0, s, 1, total[c][1], acc[c][1][s % 4]);
    }
  }
  for (size_t c = 0; c < n_cols; ++c) {
    for (size_t v = 0; v < kVectors && v * 16 < rows; ++v) {
      put_sums(out + c * ldo + v * 16, rows - v * 16, sum_lanes(acc[c][v], 4, 1), s0 == 0);
    }
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
      for (size_t v = 0; v < kVectors; ++v) {
        unpack_rows<T>(weights + r * row_bytes, rows, row_bytes, s0, count, v, strip);
      }
      for (size_t c = 0; c < n_cols; c += kTileColumns) {
        const size_t cols = n_cols - c < kTileColumns ? n_cols - c : kTileColumns;
        Act256 act[kTileColumns];
        for (size_t i = 0; i < cols; ++i) act[i] = act256(acts + (c + i) * act_bytes, n);
        tile<T>(strip, rows, act, cols, s0, count, out + c * ldo + r, ldo);
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
  const size_t act_bytes = act256_bytes(n);
  for (size_t c = 0; c < n_cols; c += 4) {
    const size_t cols = n_cols - c < 4 ? n_cols - c : 4;
    Act256 act[4];
    for (size_t i = 0; i < cols; ++i) act[i] = act256(acts + (c + i) * act_bytes, n);
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

}  // namespace selm::kernels::avx512

#endif
