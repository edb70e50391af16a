#include "kernels/avx2.h"

#if defined(__x86_64__)

#include "quant/dequantize.h"

namespace selm::kernels {
namespace avx2 {
namespace {

void matmul(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
            size_t n_cols, float* out, size_t ldo) {
  if (n_rows == 0 || n == 0) {  // an empty sum; the loops below write a row's first piece, so need one
    for (size_t i = 0; i < n_rows * n_cols; ++i) out[i / n_rows * ldo + i % n_rows] = 0.0f;
    return;
  }
  Matmul product = matmul_32(type);
  if (product == nullptr) product = matmul_256(type);
  if (product == nullptr) product = matmul_float(type);
  if (product != nullptr) product(weights, n_rows, n, acts, n_cols, out, ldo);
}

// One row per token: the scalar code is fast enough, and exact.
constexpr Table kTable = {
    Isa::avx2, "avx2",   quantize_row, matmul,     quant::dequantize_row, rms_norm, add, silu_mul, rope,
    to_f16,    from_f16, attend,       accumulate, exponentials,
};

}  // namespace
}  // namespace avx2

const Table* avx2_table() { return &avx2::kTable; }

}  // namespace selm::kernels

#endif
