// Products of the 256-element types on aarch64, for any policy; see neon_dot.h. The integer sum of a
// super-block is sum_g scale_g (sum_i code_i a_i), below 2^29; a zero point z is a minimum of z *
// scale_g that is taken off inside it.
#pragma once

#include "kernels/neon_k_types.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

// The activations' sums for each of a type's groups, in the order of its small scales.
struct GroupSums {
  int16x8_t s[2];
};
template <class T>
inline GroupSums group_sums(const int16_t* sums) {
  const int16x8_t low = vld1q_s16(sums), high = vld1q_s16(sums + 8);
  if constexpr (T::kGroup == 16) return {{low, high}};
  return {{vpaddq_s16(low, high), low}};  // at most 32 * 127
}

// ---- Few columns: 4 rows side by side, codes never leave the registers ---------------------------

template <class P, class T, int kCols, int g = 0>
[[gnu::always_inline]] inline void add_groups(const std::byte* p, const typename P::Scales& scales,
                                              const int8_t* const* q, int32x4_t* dot) {
  if constexpr (g < 8) {
    const Codes w = T::template codes<g>(p);
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c) {
      const Codes a = load_codes(q[c] + 32 * g);
      if constexpr (T::kGroup == 32) {
        dot[c] = P::template scaled32<g, T::kWide>(dot[c], scales, w, a);
      } else {
        dot[c] = P::template scaled16<2 * g>(dot[c], scales, w.low, a.low);
        dot[c] = P::template scaled16<2 * g + 1>(dot[c], scales, w.high, a.high);
      }
    }
    add_groups<P, T, kCols, g + 1>(p, scales, q, dot);
  }
}

// One row's minima times the sums, in 4 parts.
template <class T>
inline int32x4_t min_products(const SmallScales& x, const GroupSums& sums) {
  int32x4_t y = vmull_s16(vget_low_s16(x.min[0]), vget_low_s16(sums.s[0]));
  y = vmlal_high_s16(y, x.min[0], sums.s[0]);
  if constexpr (T::kGroup == 16) {
    y = vmlal_s16(y, vget_low_s16(x.min[1]), vget_low_s16(sums.s[1]));
    y = vmlal_high_s16(y, x.min[1], sums.s[1]);
  }
  return y;
}

// Super-block s of 4 rows.
template <class P, class T, int kCols>
[[gnu::always_inline]] inline void add_block_256(const std::byte* const* row, const Act256* acts, size_t s,
                                                 float32x4_t* acc) {
  constexpr bool kMinima = T::kMin || T::kZero != 0;
  int32x4_t part[kCols][4], part_min[kCols][4];
  GroupSums sums[kCols];
  const int8_t* q[kCols];
#pragma GCC unroll 2
  for (int c = 0; c < kCols; ++c) {
    q[c] = acts[c].q + 256 * s;
    if constexpr (kMinima) sums[c] = group_sums<T>(acts[c].sum + 16 * s);
  }
#pragma GCC unroll 1  // more rows at once than registers for their codes and scales
  for (size_t i = 0; i < 4; ++i) {
    const SmallScales x = T::scales(row[i]);
    int32x4_t dot[kCols];
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c) dot[c] = vdupq_n_s32(0);
    add_groups<P, T, kCols>(row[i], P::scales(x.scale[0], x.scale[1]), q, dot);
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c) {
      part[c][i] = dot[c];
      if constexpr (kMinima) part_min[c][i] = min_products<T>(x, sums[c]);
    }
  }
  const float32x4_t d = load_heads(row, T::kScale);
#pragma GCC unroll 2
  for (int c = 0; c < kCols; ++c) {
    const float scale = acts[c].scale[s];
    int32x4_t dot = sum_4(part[c]);
    if constexpr (T::kZero != 0) dot = vsubq_s32(dot, sum_4(part_min[c]));
    acc[c] = vfmaq_f32(acc[c], vcvtq_f32_s32(dot), vmulq_n_f32(d, scale));
    if constexpr (T::kMin) {
      const float32x4_t dmin = vmulq_n_f32(load_heads(row, T::kScale + 2), scale);
      acc[c] = vfmsq_f32(acc[c], vcvtq_f32_s32(sum_4(part_min[c])), dmin);
    }
  }
}

template <class P, class T, int kCols>
void few_columns_256(const std::byte* weights, size_t n_rows, size_t n, const Act256* acts, float* out,
                     size_t ldo) {
  const size_t n_blocks = n / 256;
  for (size_t r = 0; r < n_rows; r += 4) {
    const std::byte* row[4];
    row_starts(weights, r, n_rows, n_blocks * T::kBytes, row);
    float32x4_t acc[kCols];
    for (int c = 0; c < kCols; ++c) acc[c] = vdupq_n_f32(0.0f);
    for (size_t s = 0; s < n_blocks; ++s) {
      add_block_256<P, T, kCols>(row, acts, s, acc);
      for (size_t i = 0; i < 4; ++i) row[i] += T::kBytes;
    }
    for (size_t c = 0; c < kCols; ++c) store_sums(out + c * ldo + r, n_rows - r, acc[c]);
  }
}

template <class P, class T>
void few_256(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
             float* out, size_t ldo) {
  const size_t act_bytes = act256_bytes(n);
  size_t c = 0;
  for (; c + 2 <= n_cols; c += 2) {
    const Act256 act[2] = {act256(acts + c * act_bytes, n), act256(acts + (c + 1) * act_bytes, n)};
    few_columns_256<P, T, 2>(weights, n_rows, n, act, out + c * ldo, ldo);
  }
  if (c < n_cols) {
    const Act256 act = act256(acts + c * act_bytes, n);
    few_columns_256<P, T, 1>(weights, n_rows, n, &act, out + c * ldo, ldo);
  }
}

// ---- Many columns: a strip of rows is unpacked once ----------------------------------------------

template <class P>
struct Strip256 {
  static constexpr size_t kBlocks = kPiece / 256;
  alignas(64) int8_t codes[kBlocks][8][kStripVectors][2][64];  // [s, group of 32]; zero point taken off
  int32_t scale[kBlocks][16][kStripVectors][P::kRowVectors][4];
  int16_t min[kBlocks][16][kStripVectors][4];  // only types with minima, as dmin
  float d[kBlocks][kStripVectors][P::kRowVectors][4];
  float dmin[kBlocks][kStripVectors][P::kRowVectors][4];
};

template <class P, class T, int g = 0>
inline void unpack_groups(const std::byte* const* row, int8_t (*codes)[kStripVectors][2][64], size_t v) {
  if constexpr (g < 8) {
    int8x16_t low[4], high[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      const Codes w = centred<T::kZero>(T::template codes<g>(row[i]));
      low[i] = w.low;
      high[i] = w.high;
    }
    P::store_codes(codes[g][v][0], low);
    P::store_codes(codes[g][v][1], high);
    unpack_groups<P, T, g + 1>(row, codes, v);
  }
}

// Element k of each of 4 vectors becomes x[k].
inline void turn_4x8(int16x8_t r0, int16x8_t r1, int16x8_t r2, int16x8_t r3, int16x4_t* x) {
  const int16x8_t even[2] = {vzip1q_s16(r0, r2), vzip2q_s16(r0, r2)};
  const int16x8_t odd[2] = {vzip1q_s16(r1, r3), vzip2q_s16(r1, r3)};
  for (size_t i = 0; i < 2; ++i) {
    const int16x8_t a = vzip1q_s16(even[i], odd[i]), b = vzip2q_s16(even[i], odd[i]);
    x[4 * i] = vget_low_s16(a);
    x[4 * i + 1] = vget_high_s16(a);
    x[4 * i + 2] = vget_low_s16(b);
    x[4 * i + 3] = vget_high_s16(b);
  }
}

// Super-block s of 4 rows.
template <class P, class T>
void unpack_block_256(const std::byte* const* row, size_t s, size_t v, Strip256<P>& strip) {
  unpack_groups<P, T>(row, strip.codes[s], v);
  const SmallScales x[4] = {T::scales(row[0]), T::scales(row[1]), T::scales(row[2]), T::scales(row[3])};
  for (size_t h = 0; h < (T::kGroup == 16 ? 2 : 1); ++h) {
    int16x4_t turned[8];
    turn_4x8(x[0].scale[h], x[1].scale[h], x[2].scale[h], x[3].scale[h], turned);
    for (size_t g = 0; g < 8; ++g) store_rows<P>(strip.scale[s][8 * h + g][v], vmovl_s16(turned[g]));
    if constexpr (T::kMin) {
      turn_4x8(x[0].min[h], x[1].min[h], x[2].min[h], x[3].min[h], turned);
      for (size_t g = 0; g < 8; ++g) vst1_s16(strip.min[s][8 * h + g][v], turned[g]);
    }
  }
  store_rows<P>(strip.d[s][v], load_heads(row, T::kScale));
  if constexpr (T::kMin) store_rows<P>(strip.dmin[s][v], load_heads(row, T::kScale + 2));
}

template <class P, class T>
void unpack_strip_256(const std::byte* weights, size_t rows, size_t row_bytes, size_t s0, size_t count,
                      Strip256<P>& strip) {
  for (size_t v = 0; v < kStripVectors; ++v) {
    const std::byte* row[4];
    row_starts(weights + s0 * T::kBytes, 4 * v, rows, row_bytes, row);
    for (size_t s = 0; s < count; ++s) {
      unpack_block_256<P, T>(row, s, v, strip);
      for (size_t i = 0; i < 4; ++i) row[i] += T::kBytes;
    }
  }
}

using Totals = int32x4_t[kStripVectors][kTileColumns];

// The kGroup elements with one scale from element `at` of the super-block on.
template <class P, class T>
[[gnu::always_inline]] inline void add_scaled(const Strip256<P>& strip, const int8_t* const* q, size_t s,
                                              size_t at, Totals& total) {
  int32x4_t dot[kStripVectors][kTileColumns];
#pragma GCC unroll 8
  for (size_t i = 0; i < kStripVectors * kTileColumns; ++i)
    dot[i / kTileColumns][i % kTileColumns] = vdupq_n_s32(0);
#pragma GCC unroll 2
  for (size_t k = at; k < at + T::kGroup; k += 16) {
    int8x16_t a[kTileColumns];
    P::load_acts(q, k, a);
#pragma GCC unroll 2
    for (size_t v = 0; v < kStripVectors; ++v)
      P::template dot16<T::kWide>(dot[v], strip.codes[s][k / 32][v][k / 16 % 2], a);
  }
#pragma GCC unroll 2
  for (size_t v = 0; v < kStripVectors; ++v) {
#pragma GCC unroll 4
    for (size_t i = 0; i < kTileColumns; ++i) {
      const int32x4_t scale = vld1q_s32(strip.scale[s][at / T::kGroup][v][i % P::kRowVectors]);
      total[v][i] = vmlaq_s32(total[v][i], dot[v][i], scale);
    }
  }
}

// The minima of 4 rows times the sums of one column, lanes = rows.
template <class T, int g = 0>
[[gnu::always_inline]] inline int32x4_t add_minima(int32x4_t y, const int16_t (*min)[kStripVectors][4],
                                                   size_t v, const GroupSums& sums) {
  if constexpr (g < 256 / static_cast<int>(T::kGroup)) {
    y = vmlal_laneq_s16(y, vld1_s16(min[g][v]), sums.s[g / 8], g % 8);
    return add_minima<T, g + 1>(y, min, v, sums);
  } else {
    return y;
  }
}

// The totals of super-block s of the strip, block s0 + s of the row, to the outputs.
template <class P, class T>
[[gnu::always_inline]] inline void finish_block(const Strip256<P>& strip, const Act256* acts, size_t s0,
                                                size_t s, const Totals& total, Outputs& acc) {
#pragma GCC unroll 2
  for (size_t c = 0; c < kTileColumns; c += 2) {
    float32x4_t scale[2];
    P::columns(acts[c].scale[s0 + s], acts[c + 1].scale[s0 + s], scale);
#pragma GCC unroll 2
    for (size_t v = 0; v < kStripVectors; ++v) {
      int32x4_t min[2];
      if constexpr (T::kMin) {
        const int32x4_t zero = vdupq_n_s32(0);
        min[0] = add_minima<T>(zero, strip.min[s], v, group_sums<T>(acts[c].sum + 16 * (s0 + s)));
        min[1] = add_minima<T>(zero, strip.min[s], v, group_sums<T>(acts[c + 1].sum + 16 * (s0 + s)));
        P::arrange(min[0], min[1]);
      }
#pragma GCC unroll 2
      for (size_t i = 0; i < 2; ++i) {
        const size_t row = i % P::kRowVectors;
        const float32x4_t d = vmulq_f32(vld1q_f32(strip.d[s][v][row]), scale[i]);
        float32x4_t x = vfmaq_f32(acc[v][c + i], vcvtq_f32_s32(total[v][c + i]), d);
        if constexpr (T::kMin) {
          const float32x4_t dmin = vmulq_f32(vld1q_f32(strip.dmin[s][v][row]), scale[i]);
          x = vfmsq_f32(x, vcvtq_f32_s32(min[i]), dmin);
        }
        acc[v][c + i] = x;
      }
    }
  }
}

template <class P, class T>
void tile_256(const Strip256<P>& strip, const Act256* acts, size_t s0, size_t count, Outputs& acc) {
  for (size_t s = 0; s < count; ++s) {
    const int8_t* q[kTileColumns];
    for (size_t c = 0; c < kTileColumns; ++c) q[c] = acts[c].q + 256 * (s0 + s);
    Totals total;
    for (size_t i = 0; i < kStripVectors * kTileColumns; ++i)
      total[i / kTileColumns][i % kTileColumns] = vdupq_n_s32(0);
    for (size_t at = 0; at < 256; at += T::kGroup) add_scaled<P, T>(strip, q, s, at, total);
    finish_block<P, T>(strip, acts, s0, s, total, acc);
  }
}

template <class P, class T>
void many_256(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
              float* out, size_t ldo) {
  using Strip = Strip256<P>;
  const size_t n_blocks = n / 256, row_bytes = n_blocks * T::kBytes, act_bytes = act256_bytes(n);
  Strip strip;
  for (size_t r = 0; r < n_rows; r += kStripRows) {
    const size_t rows = n_rows - r < kStripRows ? n_rows - r : kStripRows;
    for (size_t s0 = 0; s0 < n_blocks; s0 += Strip::kBlocks) {
      const size_t count = n_blocks - s0 < Strip::kBlocks ? n_blocks - s0 : Strip::kBlocks;
      unpack_strip_256<P, T>(weights + r * row_bytes, rows, row_bytes, s0, count, strip);
      for (size_t c = 0; c < n_cols; c += kTileColumns) {
        Act256 act[kTileColumns];
        for (size_t i = 0; i < kTileColumns; ++i)  // past the last column: it again, not kept
          act[i] = act256(acts + (c + i < n_cols ? c + i : n_cols - 1) * act_bytes, n);
        Outputs acc;
        float* place = out + c * ldo + r;
        load_outputs<P>(place, ldo, rows, n_cols - c, s0 == 0, acc);
        tile_256<P, T>(strip, act, s0, count, acc);
        store_outputs<P>(place, ldo, rows, n_cols - c, acc);
      }
    }
  }
}

}  // namespace
}  // namespace selm::kernels::neon

#endif
