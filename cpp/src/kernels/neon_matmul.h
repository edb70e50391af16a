// From a type's id to its product, for any policy, and the rest of a table.
#pragma once

#include "kernels/neon_k.h"
#include "kernels/neon_q32.h"

#if defined(__aarch64__)

#include "quant/dequantize.h"

namespace selm::kernels::neon {
namespace {

template <class P>
struct Few {
  template <class T>
  static void run(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
                  float* out, size_t ldo) {
    if constexpr (T::kBlock == 32) {
      few_32<P, T>(weights, n_rows, n, acts, n_cols, out, ldo);
    } else {
      few_256<P, T>(weights, n_rows, n, acts, n_cols, out, ldo);
    }
  }
};

template <class P>
struct Many {
  template <class T>
  static void run(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
                  float* out, size_t ldo) {
    if constexpr (T::kBlock == 32) {
      many_32<P, T>(weights, n_rows, n, acts, n_cols, out, ldo);
    } else {
      many_256<P, T>(weights, n_rows, n, acts, n_cols, out, ldo);
    }
  }
};

template <class Columns>
Matmul product(quant::Type type) {
  switch (type) {
    case quant::Type::q4_0:
      return Columns::template run<Q4_0>;
    case quant::Type::q4_1:
      return Columns::template run<Q4_1>;
    case quant::Type::q5_0:
      return Columns::template run<Q5_0>;
    case quant::Type::q5_1:
      return Columns::template run<Q5_1>;
    case quant::Type::q8_0:
      return Columns::template run<Q8_0>;
    case quant::Type::iq4_nl:
      return Columns::template run<Iq4Nl>;
    case quant::Type::q2_k:
      return Columns::template run<Q2K>;
    case quant::Type::q3_k:
      return Columns::template run<Q3K>;
    case quant::Type::q4_k:
      return Columns::template run<Q4K>;
    case quant::Type::q5_k:
      return Columns::template run<Q5K>;
    case quant::Type::q6_k:
      return Columns::template run<Q6K>;
    case quant::Type::iq4_xs:
      return Columns::template run<Iq4Xs>;
    default:
      return matmul_float(type);
  }
}

// Where nothing is to be read the products' loops cannot start: zeros are the sums.
inline bool empty_product(size_t n_rows, size_t n, size_t n_cols, float* out, size_t ldo) {
  if (n_rows != 0 && n != 0 && n_cols != 0) return false;
  for (size_t c = 0; c < n_cols; ++c) {
    for (size_t r = 0; r < n_rows; ++r) out[c * ldo + r] = 0.0f;
  }
  return true;
}

}  // namespace
}  // namespace selm::kernels::neon

#endif
