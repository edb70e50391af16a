#include "kernels/amx.h"
#include "kernels/avx512.h"

#if defined(__x86_64__)

#include "quant/dequantize.h"

namespace selm::kernels {
namespace avx512 {
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
    Isa::avx512, "avx512", quantize_row, matmul,     quant::dequantize_row, rms_norm,  add, silu_mul, rope,
    to_f16,      from_f16, attend,       accumulate, exponentials,          matmul_u8,
};

void quantize_row_amx(ActFormat format, const float* x, size_t n, std::byte* out) {
  if (format == ActFormat::bf16) return amx::to_bf16(x, n, out);
  quantize_row(format, x, n, out);
}

constexpr Table kAmxTable = {
    Isa::amx,         "amx",  quantize_row_amx, matmul,       quant::dequantize_row,
    rms_norm,         add,    silu_mul,         rope,         to_f16,
    from_f16,         attend, accumulate,       exponentials, amx::matmul_u8,
    amx::matmul_bf16,
};

}  // namespace
}  // namespace avx512

const Table* avx512_table() { return &avx512::kTable; }
const Table* amx_table() { return &avx512::kAmxTable; }

}  // namespace selm::kernels

#endif
