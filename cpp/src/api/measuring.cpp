#include "api/measuring.h"

#include <cstring>
#include <optional>

#include "api/bandwidth.h"
#include "api/options.h"
#include "api/report.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "quant/dequantize.h"

using selm::Code;
using selm::Result;
using selm::api::choose_kernels;
using selm::api::invalid;
using selm::api::report;
namespace kernels = selm::kernels;

selm_status selm_measure_bandwidth(uint32_t threads, double* gb_per_second) {
  if (gb_per_second == nullptr) return invalid("gb_per_second must not be NULL");
  const auto measured =
      selm::api::measure_bandwidth(threads == 0 ? selm::usable_cores() : std::min(threads, 512u));
  if (!measured.ok()) return report(measured.status());
  *gb_per_second = measured.value();
  return SELM_OK;
}

namespace {

// A block type by id, with data that holds rows of n elements.
Result<selm::quant::Type> checked_type(uint32_t type, size_t size, size_t rows, size_t n) {
  const selm::quant::TypeInfo* info = selm::quant::type_info(type);
  if (info == nullptr) return selm::error(Code::unsupported, "%u is not a block type of this core", type);
  if (n % info->block_size != 0) {
    return selm::error(Code::invalid_argument, "%zu is not a multiple of the block of %u", n,
                       info->block_size);
  }
  size_t bytes = 0;
  if (!selm::checked_mul(n / info->block_size, size_t{info->block_bytes}, &bytes) ||
      !selm::checked_mul(bytes, rows, &bytes) || bytes > size) {
    return selm::error(Code::invalid_argument, "the data is shorter than its shape");
  }
  return static_cast<selm::quant::Type>(type);
}

}  // namespace

selm_status selm_dequantize(uint32_t type, const void* data, size_t size, float* out, size_t n) {
  if (data == nullptr || out == nullptr) return invalid("data and out must not be NULL");
  const auto checked = checked_type(type, size, 1, n);
  if (!checked.ok()) return report(checked.status());
  selm::quant::dequantize_row(checked.value(), static_cast<const std::byte*>(data), out, n);
  return SELM_OK;
}

selm_status selm_matmul(const char* isa, uint32_t type, const void* weights, size_t size, size_t rows,
                        size_t n, const float* activations, size_t columns, float* out) {
  if (weights == nullptr || activations == nullptr || out == nullptr) return invalid("an argument is NULL");
  const auto table = choose_kernels(isa);
  if (!table.ok()) return report(table.status());
  const auto checked = checked_type(type, size, rows, n);
  if (!checked.ok()) return report(checked.status());
  const auto [format, matmul] =
      kernels::method(*table.value(), checked.value(), columns >= kernels::kBatchColumns);
  const size_t stride = kernels::act_row_bytes(format, n);
  size_t bytes = 0;
  if (!selm::checked_mul(stride, columns, &bytes)) return invalid("too many columns");
  auto acts = selm::AlignedBuffer::make(bytes);
  if (!acts) return report(selm::error(Code::out_of_memory, "no memory for the activations"));
  for (size_t c = 0; c < columns; ++c) {
    table.value()->quantize_row(format, activations + c * n, n, acts->data() + c * stride);
  }
  matmul(checked.value(), static_cast<const std::byte*>(weights), rows, n, acts->data(), columns, out, rows);
  return SELM_OK;
}
