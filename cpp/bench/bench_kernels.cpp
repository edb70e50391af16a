// Speed of the products on one thread: decode (one column, GB/s of weights read from memory) and
// prefill (many columns, giga-operations a second, two per multiply-add), per type and table.
// Where many columns have arithmetic of their own, "exact" is what the option of that name gets.
//   bench_kernels [table] [type] [columns] [megabytes] [elements of a row]
//   e.g. bench_kernels avx512 Q4_0 128 192 2048
// The best of a few passes is shown; other work on the machine makes it less.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "../tests/blocks.h"
#include "kernels/kernels.h"

namespace {

using namespace selm;
using kernels::Table;
using quant::Type;

constexpr size_t kPrefillRows = 512;
constexpr double kSeconds = 0.25;  // for each number

// Processor time of this thread, so that a busy machine disturbs less.
double now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class Run>
double best_seconds(Run run) {
  double best = 1e30;
  const double start = now();
  do {
    const double before = now();
    run();
    const double took = now() - before;
    best = took < best ? took : best;
  } while (now() - start < kSeconds);
  return best;
}

struct Bytes {
  std::unique_ptr<std::byte, decltype(&std::free)> data;
  explicit Bytes(size_t n)
      : data(static_cast<std::byte*>(std::aligned_alloc(64, (n + 63) / 64 * 64)), std::free) {}
};

void measure(const Table& t, Type type, size_t n_cols, size_t megabytes, size_t n) {
  std::mt19937 source(1);
  const size_t row_bytes = quant::row_bytes(type, n);
  const size_t decode_rows = std::max(kPrefillRows, (megabytes << 20) / row_bytes);
  Bytes weights(decode_rows * row_bytes);
  const std::vector<std::byte> some = test::random_row(type, 16 * n, source);
  for (size_t r = 0; r < decode_rows; ++r) {
    std::memcpy(weights.data.get() + r * row_bytes, some.data() + r % 16 * row_bytes, row_bytes);
  }
  std::vector<float> out(std::max(decode_rows, kPrefillRows * n_cols));
  std::vector<float> x(n * n_cols);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(source);
  const auto seconds = [&](kernels::Method method, size_t rows, size_t cols) {
    const size_t act_bytes = kernels::act_row_bytes(method.format, n);
    Bytes acts(act_bytes * cols);
    for (size_t c = 0; c < cols; ++c)
      t.quantize_row(method.format, x.data() + c * n, n, acts.data.get() + c * act_bytes);
    return best_seconds(
        [&] { method.matmul(type, weights.data.get(), rows, n, acts.data.get(), cols, out.data(), rows); });
  };
  const double operations = 2e-9 * static_cast<double>(kPrefillRows * n * n_cols);
  const kernels::Method method = kernels::method(t, type, n_cols >= kernels::kBatchColumns);
  std::printf("%-7s %-7s decode %6.2f GB/s   prefill %7.1f GOPS (%zu columns)", t.name,
              quant::info(type).name,
              static_cast<double>(decode_rows * row_bytes) /
                  seconds(kernels::method(t, type, false), decode_rows, 1) * 1e-9,
              operations / seconds(method, kPrefillRows, n_cols), n_cols);
  if (method.matmul != t.matmul)
    std::printf(", exact %.1f",
                operations / seconds(kernels::method(t, type, false), kPrefillRows, n_cols));
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view table_name = argc > 1 ? argv[1] : "", type_name = argc > 2 ? argv[2] : "";
  const size_t n_cols = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 128;
  const size_t megabytes = argc > 4 ? std::strtoul(argv[4], nullptr, 10) : 192;  // beyond the caches
  const size_t n = argc > 5 ? std::strtoul(argv[5], nullptr, 10) : 2048;
  const Table* only = table_name.empty() ? nullptr : kernels::by_name(table_name);
  if (!table_name.empty() && only == nullptr) {
    std::fprintf(stderr, "no table '%s' on this processor\n", argv[1]);
    return 1;
  }
  for (const kernels::Isa isa : kernels::kAllIsas) {
    const Table* t = only != nullptr ? only : kernels::table(isa);
    if (t == nullptr || (only == nullptr && isa == kernels::Isa::scalar)) continue;
    for (const Type type : test::kAllTypes) {
      if (n % quant::info(type).block_size != 0) continue;
      if (type_name.empty() || type_name == quant::info(type).name)
        measure(*t, type, std::max<size_t>(n_cols, 1), megabytes, n);
    }
    if (only != nullptr) break;
  }
  return 0;
}
