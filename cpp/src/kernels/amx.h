// What amx.cpp gives to the table of avx512_table.cpp.
#pragma once

#include "kernels/layout.h"

namespace selm::kernels::amx {

// A row as bf16, rounded to nearest; padded with zeros to whole 32 elements.
void to_bf16(const float* x, size_t n, std::byte* out);

// Table::matmul_u8 (the bits of avx512's) and Table::matmul_bf16.
void matmul_u8(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
               size_t n_cols, float* out, size_t ldo);
void matmul_bf16(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                 size_t n_cols, float* out, size_t ldo);

}  // namespace selm::kernels::amx
