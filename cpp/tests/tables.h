// What the tests of kernels share: the tables of this machine, buffers, random numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/kernels.h"

namespace selm::test {

using kernels::Isa;
using kernels::Table;

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

inline bool same_bits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

}  // namespace selm::test
