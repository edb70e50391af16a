// Products for many columns with AMX: a strip of rows becomes bf16 once and meets all columns.
//
// One output: pairs k, k + 1 are added to one float, k ascending, whatever rows and columns share the
// call. That is not the arithmetic of `matmul`: weights and activations are rounded to 8 bits of
// mantissa (a relative 2^-9), but activations are not cut to int8.
#include "kernels/amx.h"

#if defined(__x86_64__)

#include "kernels/amx_tiles.h"
#include "kernels/avx512_float_types.h"
#include "kernels/avx512_k_types.h"
#include "kernels/avx512_q32_types.h"

namespace selm::kernels::amx {
namespace {

using namespace avx512;

constexpr size_t kTile = 16;   // rows or columns of a tile of sums
constexpr size_t kDepth = 32;  // elements of k that a tile holds
constexpr size_t kStripRows = 2 * kTile;
constexpr size_t kStripColumns = 2 * kTile;
constexpr size_t kPieceDepth = 512;  // a strip's bf16 then stay in the first cache
constexpr size_t kPieceTiles = kPieceDepth / kDepth;

// 32 floats as bf16, in order.
inline __m512i pack(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

inline float half(const std::byte* p) { return _cvtsh_ss(load_u16(p)); }

// 16 codes as weights: code * scale + add.
inline __m512 weights16(const uint8_t* codes, float scale, float add) {
  const __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(codes)));
  return _mm512_fmadd_ps(x, _mm512_set1_ps(scale), _mm512_set1_ps(add));
}

// `count` elements of a row, from element k0 on, as bf16 in whole tiles, zeros behind the last.
// One version for each family of types.
template <class T>
concept Blocks32 = requires { T::load4; };
template <class T>
concept Blocks256 = requires { T::codes; };

template <Blocks32 T>
inline void write_bf16(const std::byte* row, size_t k0, size_t count, uint16_t* out) {
  const std::byte* p = row + k0 / 32 * T::kBytes;
  const size_t blocks = count / 32;
  for (size_t b = 0; b < blocks; b += 4, p += 4 * T::kBytes) {
    const size_t here = blocks - b < 4 ? blocks - b : 4;
    const Codes u = here == 4 ? T::load4(p) : load_rest<T>(p, here);
    alignas(64) uint8_t low[64], high[64];
    _mm512_store_si512(low, u.low);
    _mm512_store_si512(high, u.high);
    for (size_t j = 0; j < here; ++j) {
      const float scale = half(p + j * T::kBytes);
      float add = 0;
      if constexpr (T::kMin) add = half(p + j * T::kBytes + 2);
      if constexpr (T::kZero >= 0) add = -scale * static_cast<float>(1 << T::kZero);
      _mm512_storeu_si512(out + 32 * (b + j),
                          pack(weights16(low + 16 * j, scale, add), weights16(high + 16 * j, scale, add)));
    }
  }
}

template <Blocks256 T>
inline void write_bf16(const std::byte* row, size_t k0, size_t count, uint16_t* out) {
  for (size_t k = 0; k < count; k += 256) {
    const std::byte* p = row + (k0 + k) / 256 * T::kBytes;
    __m512i u[4];
    T::codes(p, u);
    const Scales scales = T::scales(p);
    const float d = half(p + T::kScale), dmin = T::kMin ? half(p + T::kScale + 2) : d;
    alignas(64) float scale[16], min[16];
    _mm512_store_ps(
        scale, _mm512_mul_ps(_mm512_set1_ps(d), _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(scales.scale))));
    _mm512_store_ps(
        min, _mm512_mul_ps(_mm512_set1_ps(-dmin), _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(scales.min))));
    alignas(64) uint8_t codes[64];
    for (size_t j = 0; j < 4; ++j) {
      _mm512_store_si512(codes, u[j]);
      for (size_t h = 0; h < 2; ++h) {
        const auto group = static_cast<size_t>(T::kOrder[j][h]);
        const float *s = scale + 2 * group, *m = min + 2 * group;
        _mm512_storeu_si512(out + k + 32 * group, pack(weights16(codes + 32 * h, s[0], m[0]),
                                                       weights16(codes + 32 * h + 16, s[1], m[1])));
      }
    }
  }
}

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
    case quant::Type::q4_0:
      return unpack<Q4_0>;
    case quant::Type::q4_1:
      return unpack<Q4_1>;
    case quant::Type::q5_0:
      return unpack<Q5_0>;
    case quant::Type::q5_1:
      return unpack<Q5_1>;
    case quant::Type::q8_0:
      return unpack<Q8_0>;
    case quant::Type::iq4_nl:
      return unpack<Iq4Nl>;
    case quant::Type::q2_k:
      return unpack<Q2K>;
    case quant::Type::q3_k:
      return unpack<Q3K>;
    case quant::Type::q4_k:
      return unpack<Q4K>;
    case quant::Type::q5_k:
      return unpack<Q5K>;
    case quant::Type::q6_k:
      return unpack<Q6K>;
    case quant::Type::iq4_xs:
      return unpack<Iq4Xs>;
  }
  return nullptr;
}

// Tiles 0 to 3 are sums (columns 0-15 by rows 0-15, the same by rows 16-31, columns 16-31 likewise),
// 4 and 5 activations of 16 columns, 6 and 7 weights of 16 rows. Released at the end of the scope,
// as loaded tiles make every switch of threads dearer.
class Tiles {
 public:
  Tiles() = default;
  ~Tiles() { release_tiles(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // For 1 to 32 columns. Does nothing if they are as many as before.
  void set_columns(size_t n) {
    if (n == columns_) return;
    columns_ = n;
    TileConfig config;
    const auto first = static_cast<uint8_t>(n < kTile ? n : kTile);
    const auto second = static_cast<uint8_t>(n > kTile ? n - kTile : 1);
    const uint8_t rows[8] = {first, first, second, second, first, second, kDepth / 2, kDepth / 2};
    for (size_t t = 0; t < 8; ++t) {
      config.rows[t] = rows[t];
      config.row_bytes[t] = 64;
    }
    configure_tiles(config);
  }

 private:
  size_t columns_ = 0;
};

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
    multiply_tiles<0, 4, 6>();
    load_tile<7>(strip.weights[t][1], 64);
    multiply_tiles<1, 4, 7>();
    if constexpr (kBoth) {
      load_tile<5>(a + kTile * act_bytes, act_bytes);
      multiply_tiles<2, 5, 6>();
      multiply_tiles<3, 5, 7>();
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

void matmul(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
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
