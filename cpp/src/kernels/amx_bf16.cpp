// Products of F32, F16 and BF16 for many columns with AMX: a strip of rows becomes bf16 once and meets all
// columns.
//
// One output: pairs k, k + 1 are added to one float, k ascending, whatever rows and columns share the
// call. That is not the arithmetic of `matmul`: weights and activations are rounded to 8 bits of
// mantissa (a relative 2^-9), but activations are not cut to int8.
#include "kernels/amx.h"

#if defined(__x86_64__)

#include "kernels/amx_tiles.h"
#include "kernels/avx512_float_types.h"

namespace selm::kernels::amx {
namespace {

using namespace avx512;

constexpr size_t kDepth = 32;  // elements of k that a tile holds
constexpr size_t kStripRows = 2 * kTile;
constexpr size_t kStripColumns = 2 * kTile;
constexpr size_t kPieceDepth = 512;  // a strip's bf16 then stay in the first cache
constexpr size_t kPieceTiles = kPieceDepth / kDepth;

// 32 floats as bf16, in order.
inline __m512i pack(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// `count` elements of a row, from element k0 on, as bf16 in whole tiles, zeros behind the last.
template <class T>
inline void write_bf16(const std::byte* row, size_t k0, size_t count, uint16_t* out) {
  for (size_t k = 0; k < count; k += kDepth) {
    const std::byte* p = row + (k0 + k) * T::kBytes;
    const size_t here = count - k;
    const __m512 low = T::load(p, first_lanes(here));
    const __m512 high = here > 16 ? T::load(p + 16 * T::kBytes, first_lanes(here - 16)) : _mm512_setzero_ps();
    _mm512_storeu_si512(out + k, pack(low, high));
  }
}

// One piece of a strip of rows: [tile of k, rows / 16, pair of k, row, k % 2].
struct Strip {
  alignas(64) uint16_t weights[kPieceTiles][2][kDepth / 2][2 * kTile];
};

// Rows past the last repeat it: their results are not kept.
template <class T>
void unpack(const std::byte* weights, size_t rows, size_t row_bytes, size_t k0, size_t count, Strip& strip) {
  alignas(64) uint16_t lines[kTile][kPieceDepth];
  for (size_t v = 0; v < 2; ++v) {
    for (size_t i = 0; i < kTile; ++i) {
      const size_t r = v * kTile + i < rows ? v * kTile + i : rows - 1;
      write_bf16<T>(weights + r * row_bytes, k0, count, lines[i]);
    }
    for (size_t t = 0; t * kDepth < count; ++t) {
      __m512i x[kTile];
      for (size_t i = 0; i < kTile; ++i) x[i] = _mm512_load_si512(lines[i] + kDepth * t);
      transpose16(x);
      for (size_t p = 0; p < kDepth / 2; ++p) _mm512_store_si512(strip.weights[t][v][p], x[p]);
    }
  }
}

using Unpack = void (*)(const std::byte* weights, size_t rows, size_t row_bytes, size_t k0, size_t count,
                        Strip& strip);

Unpack unpack_of(quant::Type type) {
  switch (type) {
    case quant::Type::f32:
      return unpack<F32>;
    case quant::Type::f16:
      return unpack<F16>;
    case quant::Type::bf16:
      return unpack<Bf16>;
    default:
      return nullptr;
  }
}

// Adds one piece to the sums of 32 rows and of up to 16 columns, or more if kBoth; to zero if `first`.
template <bool kBoth>
void multiply(const Strip& strip, size_t n_tiles, const std::byte* acts, size_t act_bytes, bool first,
              float* sums, size_t ldo) {
  const size_t stride = ldo * sizeof(float);
  float* const more = sums + kTile * ldo;
  if (first) {
    zero_tile<0>();
    zero_tile<1>();
    if constexpr (kBoth) {
      zero_tile<2>();
      zero_tile<3>();
    }
  } else {
    load_tile<0>(sums, stride);
    load_tile<1>(sums + kTile, stride);
    if constexpr (kBoth) {
      load_tile<2>(more, stride);
      load_tile<3>(more + kTile, stride);
    }
  }
#pragma GCC unroll 1
  for (size_t t = 0; t < n_tiles; ++t) {
    const std::byte* a = acts + t * kDepth * sizeof(uint16_t);
    load_tile<6>(strip.weights[t][0], 64);
    load_tile<4>(a, act_bytes);
    multiply_bf16<0, 4, 6>();
    load_tile<7>(strip.weights[t][1], 64);
    multiply_bf16<1, 4, 7>();
    if constexpr (kBoth) {
      load_tile<5>(a + kTile * act_bytes, act_bytes);
      multiply_bf16<2, 5, 6>();
      multiply_bf16<3, 5, 7>();
    }
  }
  store_tile<0>(sums, stride);
  store_tile<1>(sums + kTile, stride);
  if constexpr (kBoth) {
    store_tile<2>(more, stride);
    store_tile<3>(more + kTile, stride);
  }
}

}  // namespace

void to_bf16(const float* x, size_t n, std::byte* out) {
  write_bf16<F32>(reinterpret_cast<const std::byte*>(x), 0, n, reinterpret_cast<uint16_t*>(out));
}

void matmul_bf16(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                 size_t n_cols, float* out, size_t ldo) {
  if (n == 0) {  // an empty sum
    for (size_t i = 0; i < n_rows * n_cols; ++i) out[i / n_rows * ldo + i % n_rows] = 0.0f;
    return;
  }
  const Unpack unpack = unpack_of(type);
  const size_t row_bytes = quant::row_bytes(type, n);
  const size_t act_bytes = act_row_bytes(ActFormat::bf16, n);
  Strip strip;
  Tiles tiles;
  alignas(64) float edge[kStripColumns][kStripRows];  // the sums of a strip that is not whole
  for (size_t r = 0; r < n_rows; r += kStripRows) {
    const size_t rows = n_rows - r < kStripRows ? n_rows - r : kStripRows;
    for (size_t k0 = 0; k0 < n; k0 += kPieceDepth) {
      const size_t count = n - k0 < kPieceDepth ? n - k0 : kPieceDepth;
      const size_t n_tiles = (count + kDepth - 1) / kDepth;
      unpack(weights + r * row_bytes, rows, row_bytes, k0, count, strip);
      for (size_t c = 0; c < n_cols; c += kStripColumns) {
        const size_t columns = n_cols - c < kStripColumns ? n_cols - c : kStripColumns;
        const std::byte* act = acts + c * act_bytes + k0 * sizeof(uint16_t);
        float* const place = out + c * ldo + r;
        const bool whole = rows == kStripRows;
        for (size_t i = 0; !whole && k0 != 0 && i < columns; ++i)
          __builtin_memcpy(edge[i], place + i * ldo, rows * sizeof(float));
        float* const sums = whole ? place : edge[0];
        const size_t apart = whole ? ldo : kStripRows;
        tiles.set_columns(columns);
        if (columns > kTile) {
          multiply<true>(strip, n_tiles, act, act_bytes, k0 == 0, sums, apart);
        } else {
          multiply<false>(strip, n_tiles, act, act_bytes, k0 == 0, sums, apart);
        }
        for (size_t i = 0; !whole && i < columns; ++i)
          __builtin_memcpy(place + i * ldo, edge[i], rows * sizeof(float));
      }
    }
  }
}

}  // namespace selm::kernels::amx

#endif
