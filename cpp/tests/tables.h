// What the tests of kernels share: the tables of this machine, buffers, random numbers and products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "blocks.h"
#include "kernels/kernels.h"
#include "quant/dequantize.h"

namespace selm::test {

using kernels::Isa;
using kernels::Table;
using quant::Type;

inline std::vector<const Table*> fast_tables() {
  std::vector<const Table*> tables;
  for (const Isa isa : kernels::kAllIsas) {
    if (const Table* t = kernels::table(isa); t != nullptr && isa != Isa::scalar) tables.push_back(t);
  }
  return tables;
}
inline std::vector<const Table*> all_tables() {
  std::vector<const Table*> tables = fast_tables();
  tables.insert(tables.begin(), kernels::table(Isa::scalar));
  return tables;
}

// 64-byte aligned bytes, as the engine's activation buffers are.
class Buffer {
 public:
  explicit Buffer(size_t size) : room_(size + 64), size_(size) {
    data_ = room_.data() + (64 - reinterpret_cast<uintptr_t>(room_.data()) % 64) % 64;
  }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::vector<std::byte> room_;
  size_t size_;
  std::byte* data_;
};

inline std::vector<float> random_floats(size_t n, std::mt19937& source, float spread = 1) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> x(n);
  for (float& v : x) v = normal(source);
  return x;
}

struct Problem {
  Type type;
  size_t rows, n, cols;
  std::vector<std::byte> weights;
  std::vector<float> x;  // [cols, n]
};

inline Problem random_problem(Type type, size_t rows, size_t n, size_t cols, std::mt19937& source) {
  Problem p{type, rows, n, cols, {}, random_floats(cols * n, source)};
  for (size_t r = 0; r < rows; ++r) {
    const std::vector<std::byte> row = test::random_row(type, n, source);
    p.weights.insert(p.weights.end(), row.begin(), row.end());
  }
  return p;
}

inline std::vector<float> weights_of(const Problem& p) {
  std::vector<float> w(p.rows * p.n);
  for (size_t r = 0; r < p.rows; ++r) {
    quant::dequantize_row(p.type, p.weights.data() + r * quant::row_bytes(p.type, p.n), w.data() + r * p.n,
                          p.n);
  }
  return w;
}

// The columns as activations, rows of act_row_bytes.
inline Buffer quantize(const Table& t, kernels::ActFormat format, const Problem& p) {
  const size_t bytes = kernels::act_row_bytes(format, p.n);
  Buffer acts(bytes * p.cols);
  for (size_t c = 0; c < p.cols; ++c)
    t.quantize_row(format, p.x.data() + c * p.n, p.n, acts.data() + c * bytes);
  return acts;
}

// Row lengths: one block, some that fill no vector, more than one piece of the kernels.
inline std::vector<size_t> lengths(Type type) {
  switch (quant::info(type).block_size) {
    case 32:
      return {32, 64, 96, 160, 512, 544, 896, 2048 + 32, 4864};
    case 256:
      return {256, 512, 768, 1280, 2048, 2304, 4864 + 256};
    default:
      return {1, 7, 16, 33, 100, 896};
  }
}

inline bool same_bits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

}  // namespace selm::test
