// Attention of a tile of queries over one chunk, for any width of vector. Each instruction set's
// file defines its vector V and includes this; V's operations are in a namespace of that file, so
// nothing here has a second copy (see layout.h).
//
// The chunk is gone through in strips: keys are unpacked and turned, so that a lane is a position
// and no sum runs across lanes; values are unpacked once for all queries. Every lane adds in the
// order of d (scores) or of positions (values), whichever queries share the tile.
#pragma once

#include "kernels/attention.h"

namespace selm::kernels {
namespace {

// V: Reg, kLanes, kScoreRows, kValueRows, kValueRegs; zero, set1, load, store, fma, mul, sub, max,
// exp, sum_lanes, max_lanes; unpack(format, row, n, out) with zeros to padded(n); turn(from,
// from_stride, to, to_stride): a square of kLanes x kLanes, transposed.
// out[r][i] += the sum over p of weights[r][p] * values[p][i], in the order of p; i < width, whole
// vectors. As many rows and columns at a time as there are registers for.
template <class V, size_t kRows, size_t kWide>
void accumulate_block(const float* weights, size_t weight_stride, const float* values, size_t value_stride,
                      size_t count, float* out, size_t out_stride) {
  typename V::Reg sum[kRows][kWide];
  for (size_t r = 0; r < kRows; ++r)
    for (size_t i = 0; i < kWide; ++i) sum[r][i] = V::load(out + r * out_stride + i * V::kLanes);
  for (size_t p = 0; p < count; ++p) {
    typename V::Reg value[kWide];
#pragma GCC unroll 8
    for (size_t i = 0; i < kWide; ++i) value[i] = V::load(values + p * value_stride + i * V::kLanes);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const typename V::Reg weight = V::set1(weights[r * weight_stride + p]);
#pragma GCC unroll 8
      for (size_t i = 0; i < kWide; ++i) sum[r][i] = V::fma(weight, value[i], sum[r][i]);
    }
  }
  for (size_t r = 0; r < kRows; ++r)
    for (size_t i = 0; i < kWide; ++i) V::store(out + r * out_stride + i * V::kLanes, sum[r][i]);
}

template <class V, size_t kRows>
void accumulate_rows(const float* weights, size_t weight_stride, const float* values, size_t value_stride,
                     size_t count, float* out, size_t out_stride, size_t width) {
  size_t d = 0;
  for (; d + V::kValueRegs * V::kLanes <= width; d += V::kValueRegs * V::kLanes)
    accumulate_block<V, kRows, V::kValueRegs>(weights, weight_stride, values + d, value_stride, count,
                                              out + d, out_stride);
  for (; d < width; d += V::kLanes)
    accumulate_block<V, kRows, 1>(weights, weight_stride, values + d, value_stride, count, out + d,
                                  out_stride);
}

template <class V, size_t kRows>
void accumulate_rest(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                     size_t value_stride, size_t count, float* out, size_t out_stride, size_t width) {
  if constexpr (kRows > 0) {
    if (n_rows == kRows) {
      accumulate_rows<V, kRows>(weights, weight_stride, values, value_stride, count, out, out_stride, width);
    } else {
      accumulate_rest<V, kRows - 1>(weights, weight_stride, n_rows, values, value_stride, count, out,
                                    out_stride, width);
    }
  }
}

template <class V>
void accumulate(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                size_t value_stride, size_t count, float* out, size_t out_stride, size_t width) {
  size_t r = 0;
  for (; r + V::kValueRows <= n_rows; r += V::kValueRows)
    accumulate_rows<V, V::kValueRows>(weights + r * weight_stride, weight_stride, values, value_stride, count,
                                      out + r * out_stride, out_stride, width);
  accumulate_rest<V, V::kValueRows - 1>(weights + r * weight_stride, weight_stride, n_rows - r, values,
                                        value_stride, count, out + r * out_stride, out_stride, width);
}

// x[i] = e^(x[i] - shift), i < n, whole vectors.
template <class V>
void exponentials(float* x, size_t n, float shift) {
  for (size_t i = 0; i < n; i += V::kLanes) V::store(x + i, V::exp(V::sub(V::load(x + i), V::set1(shift))));
}

template <class V>
struct Tile {
  using Reg = typename V::Reg;
  static constexpr size_t kRegs = kStrip / V::kLanes;

  const AttentionChunk& chunk;
  float* strip;   // [kStrip][padded(d)], unpacked rows
  float* turned;  // [padded(d_k)][kStrip]
  float* scores;  // [n_queries][kChunk]

  void unpack(const std::byte* rows, size_t count, size_t n) const {
    for (size_t p = 0; p < count; ++p)
      V::unpack(chunk.format, rows + p * chunk.stride, n, strip + p * padded(n));
  }

  void turn(size_t count) const {
    const size_t width = padded(chunk.d_k);
    for (size_t p = count; p < kStrip; ++p)
      for (size_t d = 0; d < width; ++d) strip[p * width + d] = 0.0f;
    for (size_t p = 0; p < kStrip; p += V::kLanes)
      for (size_t d = 0; d < width; d += V::kLanes)
        V::turn(strip + p * width + d, width, turned + d * kStrip + p, kStrip);
  }

  template <size_t kRows>
  void score_rows(const float* const* queries, float* out) const {
    Reg sum[kRows][kRegs];
    for (size_t r = 0; r < kRows; ++r)
      for (size_t i = 0; i < kRegs; ++i) sum[r][i] = V::zero();
    for (size_t d = 0; d < chunk.d_k; ++d) {
      Reg key[kRegs];
#pragma GCC unroll 8
      for (size_t i = 0; i < kRegs; ++i) key[i] = V::load(turned + d * kStrip + i * V::kLanes);
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) {
        const Reg q = V::set1(queries[r][d]);
#pragma GCC unroll 8
        for (size_t i = 0; i < kRegs; ++i) sum[r][i] = V::fma(q, key[i], sum[r][i]);
      }
    }
    const Reg scale = V::set1(chunk.scale);
    for (size_t r = 0; r < kRows; ++r)
      for (size_t i = 0; i < kRegs; ++i) V::store(out + r * kChunk + i * V::kLanes, V::mul(sum[r][i], scale));
  }

  // As many rows at a time as there are registers for; the rest one at a time.
  void score(const float* const* queries, size_t n_queries, size_t position) const {
    size_t r = 0;
    for (; r + V::kScoreRows <= n_queries; r += V::kScoreRows)
      score_rows<V::kScoreRows>(queries + r, scores + r * kChunk + position);
    score_rest<V::kScoreRows - 1>(queries + r, n_queries - r, scores + r * kChunk + position);
  }
  template <size_t kRows>
  void score_rest(const float* const* queries, size_t n, float* out) const {
    if constexpr (kRows > 0) {
      if (n == kRows) {
        score_rows<kRows>(queries, out);
      } else {
        score_rest<kRows - 1>(queries, n, out);
      }
    }
  }

  // Scores from `begin` on become e^(score - max), zero where the query does not see; max and sum to
  // the partial.
  void soften(float* row, size_t begin, const Visible& seen, float* partial) const {
    const size_t whole = (chunk.n_pos + V::kLanes - 1) / V::kLanes * V::kLanes;
    const auto hide = [&](float value) {
      for (size_t p = begin; p < seen.from; ++p) row[p] = value;
      for (size_t p = seen.to; p < whole; ++p) row[p] = value;
    };
    const size_t at = padded(chunk.d_v);
    partial[at] = -__builtin_inff();
    partial[at + 1] = 0.0f;
    if (seen.from >= seen.to) {
      for (size_t p = begin; p < whole; ++p) row[p] = 0.0f;
      return;
    }
    hide(-__builtin_inff());
    Reg largest = V::set1(-__builtin_inff());
    for (size_t p = begin; p < whole; p += V::kLanes) largest = V::max(largest, V::load(row + p));
    const float max = partial[at] = V::max_lanes(largest);
    // Below e^-60 a weight is lost beside that of the largest, and is zero here: as a denormal number it
    // would make each product of its many times slower.
    const Reg least = V::set1(-60.0f), lost = V::exp(least);
    Reg total = V::zero();
    for (size_t p = begin; p < whole; p += V::kLanes) {
      const Reg x = V::sub(V::load(row + p), V::set1(max));
      const Reg e = V::sub(V::exp(V::max(least, x)), lost);  // NaN stays: it is the second operand
      V::store(row + p, e);
      total = V::add(total, e);
    }
    hide(0.0f);  // e^-infinity, whatever exp makes of it
    partial[at + 1] = V::sum_lanes(total);
  }

  void weigh(size_t count, size_t n_queries, size_t position, float* partials) const {
    accumulate<V>(scores + position, kChunk, n_queries, strip, padded(chunk.d_v), count, partials,
                  partial_floats(chunk.d_v), padded(chunk.d_v));
  }
};

template <class V>
void attend_tile(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
                 size_t n_queries, float* scratch, float* partials) {
  const size_t widest = chunk.d_k > chunk.d_v ? padded(chunk.d_k) : padded(chunk.d_v);
  const Tile<V> tile{chunk, scratch, scratch + kStrip * widest, scratch + 2 * kStrip * widest};
  const size_t stride = partial_floats(chunk.d_v);
  size_t begin = chunk.n_pos;  // of the first strip that any query sees
  for (size_t r = 0; r < n_queries; ++r) begin = visible[r].from < begin ? visible[r].from : begin;
  begin = begin / kStrip * kStrip;
  for (size_t first = begin; first < chunk.n_pos; first += kStrip) {
    const size_t count = chunk.n_pos - first < kStrip ? chunk.n_pos - first : kStrip;
    tile.unpack(chunk.keys + first * chunk.stride, count, chunk.d_k);
    tile.turn(count);
    tile.score(queries, n_queries, first);
  }
  for (size_t r = 0; r < n_queries; ++r) {
    float* partial = partials + r * stride;
    for (size_t d = 0; d < padded(chunk.d_v); ++d) partial[d] = 0.0f;
    tile.soften(tile.scores + r * kChunk, begin, visible[r], partial);
  }
  for (size_t first = begin; first < chunk.n_pos; first += kStrip) {
    const size_t count = chunk.n_pos - first < kStrip ? chunk.n_pos - first : kStrip;
    tile.unpack(chunk.values + first * chunk.stride, count, chunk.d_v);
    tile.weigh(count, n_queries, first, partials);
  }
}

}  // namespace
}  // namespace selm::kernels
