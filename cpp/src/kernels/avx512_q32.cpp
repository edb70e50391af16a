// Products of the 32-element types, AVX-512 VNNI.
//
// One output: blocks b of a piece (kPiece elements) go to 8 lanes, l = b mod 8:
//   lane += float(sum_i w_i a_i) * (d_w * d_a)   [and += m_w * (d_a * sum_i a_i)]
// then the lanes are summed (sum_lanes) and added to the output, piece after piece. The integer sum
// is exact: codes are taken unsigned, and the zero point comes off by the sum of the activations.
// `one_column` and `tile` give the same bits.
#include "kernels/avx512.h"
#include "kernels/avx512_q32_types.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

constexpr size_t kPieceBlocks = kPiece / 32;
constexpr size_t kLanes = 8;

// ---- One column: vectors run along a row, which is how memory is read fastest -------------------

// Lane l: sum of the four dwords in 128-bit lane l % 4 of p[l / 4].
inline __m512i sum_blocks(const __m512i* p) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
  const __m512i sum = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                  sum);
}

// 16 blocks from b0 on (`blocks` of them exist): lanes b mod 8 receive blocks 0-7, then 8-15.
template <class T, bool kFull>
inline __m256 add_chunk(const std::byte* w, size_t blocks, const Act32& act, size_t b0, __m256 lanes) {
  prefetch<16 * T::kBytes>(w);
  __m512i p[4];
#pragma GCC unroll 4
  for (size_t g = 0; g < 4; ++g) {
    if (!kFull && 4 * g >= blocks) {
      p[g] = _mm512_setzero_si512();
      continue;
    }
    const std::byte* source = w + 4 * g * T::kBytes;
    const Codes u = kFull || blocks - 4 * g >= 4 ? T::load4(source) : load_rest<T>(source, blocks - 4 * g);
    const int8_t* q = act.q + 32 * (b0 + 4 * g);
    const __m512i x = load64(q), y = load64(q + 64);  // 128-bit lanes: low, high, low, high
    const __m512i low = _mm512_shuffle_i64x2(x, y, 0x88), high = _mm512_shuffle_i64x2(x, y, 0xdd);
    p[g] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), u.low, low), u.high, high);
  }
  constexpr int kStep = T::kBytes;
  const __m512i offsets =
      _mm512_setr_epi32(0, kStep, 2 * kStep, 3 * kStep, 4 * kStep, 5 * kStep, 6 * kStep, 7 * kStep, 8 * kStep,
                        9 * kStep, 10 * kStep, 11 * kStep, 12 * kStep, 13 * kStep, 14 * kStep, 15 * kStep);
  const __m512i heads =
      kFull ? _mm512_i32gather_epi32(offsets, w, 1)
            : _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), first_lanes(blocks), offsets, w, 1);
  const __m512i sum = load64(act.sum + b0);
  const __m512 scale = _mm512_loadu_ps(act.scale + b0);
  __m512i dot = sum_blocks(p);
  if constexpr (T::kZero >= 0) dot = _mm512_sub_epi32(dot, _mm512_slli_epi32(sum, T::kZero));
  const __m512 x = _mm512_cvtepi32_ps(dot), y = _mm512_mul_ps(low_halves(heads), scale);
  if constexpr (T::kMin) {
    const __m512 m = high_halves(heads), z = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum));
    lanes = _mm256_fmadd_ps(low_half(m), low_half(z), _mm256_fmadd_ps(low_half(x), low_half(y), lanes));
    return _mm256_fmadd_ps(high_half(m), high_half(z), _mm256_fmadd_ps(high_half(x), high_half(y), lanes));
  } else {
    return _mm256_fmadd_ps(high_half(x), high_half(y), _mm256_fmadd_ps(low_half(x), low_half(y), lanes));
  }
}

template <class T>
void one_column(const std::byte* weights, size_t n_rows, size_t n, const Act32& act, float* out) {
  const size_t n_blocks = n / 32;
  for (size_t r = 0; r < n_rows; ++r) {
    const std::byte* row = weights + r * n_blocks * T::kBytes;
    for (size_t b0 = 0; b0 < n_blocks; b0 += kPieceBlocks) {
      const size_t end = n_blocks - b0 < kPieceBlocks ? n_blocks : b0 + kPieceBlocks;
      __m256 lanes = _mm256_setzero_ps();
      size_t b = b0;
      for (; b + 16 <= end; b += 16) lanes = add_chunk<T, true>(row + b * T::kBytes, 16, act, b, lanes);
      if (b < end) lanes = add_chunk<T, false>(row + b * T::kBytes, end - b, act, b, lanes);
      out[r] = b0 == 0 ? sum_lanes(lanes) : out[r] + sum_lanes(lanes);
    }
  }
}

// ---- More columns: vectors run across 16 rows, a block of which serves all columns --------------

constexpr size_t kRows = 16;
constexpr size_t kTileColumns = 32;

// sum + the products of codes with the same 4 activations in all dwords. (As one instruction: GCC 12 would
// load them by one of its own.)
inline __m512i add_products(__m512i sum, __m512i codes, const int8_t* four) {
  using Four [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const Four*>(four)));
  return sum;
}

// 4x4 dwords of every 128-bit lane.
inline void transpose4(__m512i* r) {
  const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
  r[0] = _mm512_unpacklo_epi64(a, c);
  r[1] = _mm512_unpackhi_epi64(a, c);
  r[2] = _mm512_unpacklo_epi64(b, d);
  r[3] = _mm512_unpackhi_epi64(b, d);
}

// One block of 16 rows: dword r of vector k holds elements 4k .. 4k + 3 of row r.
template <class T>
inline void load_rows(const std::byte* w, size_t row_bytes, __m512i* codes) {
  size_t stride = 4 * row_bytes;
  __asm__("" : "+r"(stride));  // GCC would keep 16 pointers, more than there are registers
  repeat<4>([&](auto i) {
    const Codes u = T::load4(w, stride);  // rows i, i + 4, i + 8, i + 12
    w += row_bytes;
    codes[i] = u.low;
    codes[4 + i] = u.high;
  });
  transpose4(codes);
  transpose4(codes + 4);
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
using Lanes = __m512[kLanes][kTileColumns];

// One block of 16 rows: codes, scales and minima.
struct Block {
  __m512i codes[8];
  __m512 d, m;
};

// acc[b % kLanes][c] of columns c0 .. c0 + kCols.
template <class T, size_t kCols>
inline void add_columns(const Block& w, const Corrections& fix, const Act32* acts, size_t b0, size_t b,
                        size_t c0, Lanes& acc) {
  repeat<kCols>([&](auto i) {
    const size_t c = c0 + i;
    const int8_t* q = acts[c].q + 32 * (b0 + b);
    // Two chains, as one of eight products is longer than all else that a column needs.
    __m512i low = T::kZero >= 0 ? _mm512_set1_epi32(fix.zero[c][b]) : _mm512_setzero_si512();
    __m512i high = _mm512_setzero_si512();
    repeat<4>([&](auto k) {
      low = add_products(low, w.codes[k], q + 4 * k);
      high = add_products(high, w.codes[4 + k], q + 16 + 4 * k);
    });
    const __m512 d = _mm512_mul_ps(w.d, _mm512_set1_ps(acts[c].scale[b0 + b]));
    __m512& lane = acc[b % kLanes][c];
    __m512 x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(low, high)), d, lane);
    if constexpr (T::kMin) x = _mm512_fmadd_ps(w.m, _mm512_set1_ps(fix.sum[c][b]), x);
    lane = x;
  });
}

// A piece of `count` blocks from b0 on of 16 rows, w their beginning there; sums [n_cols] of vectors of rows.
template <class T>
inline void add_piece(const std::byte* w, size_t row_bytes, const std::byte* next, const Act32* acts,
                      size_t n_cols, size_t b0, size_t count, Lanes& acc) {
  Corrections fix;
  correct<T>(acts, n_cols, b0, count, fix);
  for (auto& lane : acc) __builtin_memset(lane, 0, n_cols * sizeof lane[0]);
  const __m512i row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i offsets = _mm512_mullo_epi32(row, _mm512_set1_epi32(static_cast<int32_t>(row_bytes)));
  size_t ahead = 0;  // block of the row at `next` that is asked for
  for (size_t b = 0; b < count; ++b) {
    // To the second cache: the first has no room for another piece of 16 rows.
    prefetch<16 * T::kBytes, _MM_HINT_T1>(next + ahead * T::kBytes, 0);
    for (ahead += 16; ahead >= count; ahead -= count) next += row_bytes;
    const std::byte* source = w + b * T::kBytes;
    Block block;
    load_rows<T>(source, row_bytes, block.codes);
    const __m512i heads = _mm512_i32gather_epi32(offsets, source, 1);
    block.d = low_halves(heads);
    if constexpr (T::kMin) block.m = high_halves(heads);
    size_t c = 0;
    for (; c + 4 <= n_cols; c += 4) add_columns<T, 4>(block, fix, acts, b0, b, c, acc);
    if (n_cols - c == 3) add_columns<T, 3>(block, fix, acts, b0, b, c, acc);
    if (n_cols - c == 2) add_columns<T, 2>(block, fix, acts, b0, b, c, acc);
    if (n_cols - c == 1) add_columns<T, 1>(block, fix, acts, b0, b, c, acc);
  }
}

// Up to 16 rows and kTileColumns columns.
template <class T>
void tile(const std::byte* weights, size_t rows, size_t n, const Act32* acts, size_t n_cols, float* out,
          size_t ldo) {
  const size_t n_blocks = n / 32, row_bytes = n_blocks * T::kBytes;
  alignas(64) std::byte copy[kRows * kPieceBlocks * T::kBytes];
  for (size_t b0 = 0; b0 < n_blocks; b0 += kPieceBlocks) {
    const size_t count = n_blocks - b0 < kPieceBlocks ? n_blocks - b0 : kPieceBlocks;
    const std::byte* w = weights + b0 * T::kBytes;
    Lanes acc;
    if (rows == kRows) {
      const std::byte* next = b0 + count < n_blocks ? w + count * T::kBytes : weights + kRows * row_bytes;
      add_piece<T>(w, row_bytes, next, acts, n_cols, b0, count, acc);
    } else {  // what is missing may not be there to be read
      const size_t bytes = count * T::kBytes;
      for (size_t r = 0; r < kRows; ++r)
        __builtin_memcpy(copy + r * bytes, w + (r < rows ? r : 0) * row_bytes, bytes);
      add_piece<T>(copy, bytes, copy, acts, n_cols, b0, count, acc);
    }
    for (size_t c = 0; c < n_cols; ++c)
      put_sums(out + c * ldo, rows, sum_lanes(&acc[0][c], kLanes, kTileColumns), b0 == 0);
  }
}

template <class T>
void matmul(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
            float* out, size_t ldo) {
  if (n_cols == 1) {
    one_column<T>(weights, n_rows, n, act32(acts, n), out);
    return;
  }
  const size_t row_bytes = n / 32 * T::kBytes, act_bytes = act32_bytes(n);
  for (size_t c = 0; c < n_cols; c += kTileColumns) {
    const size_t cols = n_cols - c < kTileColumns ? n_cols - c : kTileColumns;
    Act32 act[kTileColumns];
    for (size_t i = 0; i < cols; ++i) act[i] = act32(acts + (c + i) * act_bytes, n);
    for (size_t r = 0; r < n_rows; r += kRows) {
      const size_t rows = n_rows - r < kRows ? n_rows - r : kRows;
      tile<T>(weights + r * row_bytes, rows, n, act, cols, out + c * ldo + r, ldo);
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
