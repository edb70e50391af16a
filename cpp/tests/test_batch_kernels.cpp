// The products for many columns: matmul_u8 against the scalar one, its weights and float64; matmul_bf16
// against sums of rounded numbers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "check.h"
#include "tables.h"

namespace {

using namespace selm;
using namespace selm::test;

constexpr Type kQuantised[] = {Type::q4_0, Type::q4_1, Type::q5_0, Type::q5_1, Type::q8_0,   Type::q2_k,
                               Type::q3_k, Type::q4_k, Type::q5_k, Type::q6_k, Type::iq4_nl, Type::iq4_xs};

// ---- int8 weights -------------------------------------------------------------------------------

std::vector<const Table*> u8_tables() {
  std::vector<const Table*> tables;
  for (const Table* t : fast_tables()) {
    if (t->matmul_u8 != nullptr) tables.push_back(t);
  }
  if (tables.empty()) std::printf("skipped: no fast table here has products of re-quantised weights\n");
  return tables;
}

std::vector<float> multiply_u8(const Table& t, const Problem& p, const Buffer& acts) {
  std::vector<float> out(p.rows * p.cols, std::numeric_limits<float>::quiet_NaN());
  t.matmul_u8(p.type, p.weights.data(), p.rows, p.n, acts.data(), p.cols, out.data(), p.rows);
  return out;
}

std::vector<float> multiply_u8(const Table& t, const Problem& p) {
  return multiply_u8(t, p, quantize(t, kernels::ActFormat::u8_256, p));
}

TEST("re-quantised products have the scalar table's bits") {
  std::mt19937 source(31);
  const Table& scalar = *kernels::table(Isa::scalar);
  for (const Table* t : u8_tables()) {
    for (const Type type : kQuantised) {
      for (const size_t n : lengths(type)) {
        const Problem p = random_problem(type, 1 + source() % 140, n, 1 + source() % 40, source);
        const std::vector<float> want = multiply_u8(scalar, p), got = multiply_u8(*t, p);
        CHECK(same_bits(got.data(), want.data(), got.size()));
      }
    }
  }
}

TEST("u8_256 activations are the same bytes on every table that has products for them") {
  std::mt19937 source(32);
  for (const Table* t : u8_tables()) {
    for (const size_t n : std::initializer_list<size_t>{32, 256, 896, 1280}) {
      for (const float spread : {1.0f, 1e-33f, 1e30f}) {
        Problem p{Type::q8_0, 0, n, 1, {}, random_floats(n, source, spread)};
        if (spread == 1e30f) p.x[n - 1] = std::numeric_limits<float>::infinity();
        const Buffer want = quantize(*kernels::table(Isa::scalar), kernels::ActFormat::u8_256, p);
        const Buffer got = quantize(*t, kernels::ActFormat::u8_256, p);
        CHECK(std::memcmp(got.data(), want.data(), want.size()) == 0);
      }
    }
  }
}

// A one at position k, and nothing else, gives back the weight of column k.
TEST("re-quantised weights are within half a step of the dequantised ones") {
  std::mt19937 source(33);
  const Table& scalar = *kernels::table(Isa::scalar);
  for (const Type type : kQuantised) {
    for (const size_t n : std::initializer_list<size_t>{256, 160}) {
      if (n % quant::info(type).block_size != 0) continue;
      Problem p = random_problem(type, 40, n, n, source);
      std::fill(p.x.begin(), p.x.end(), 0.0f);
      for (size_t k = 0; k < n; ++k) p.x[k * n + k] = 1;
      const std::vector<float> want = weights_of(p), got = multiply_u8(scalar, p);
      for (size_t r = 0; r < p.rows; ++r) {
        double amax = 0, error = 0;
        for (size_t k = 0; k < n; ++k) {
          const auto w = static_cast<double>(want[r * n + k]);
          amax = std::max(amax, std::fabs(w));
          error = std::max(error, std::fabs(w - static_cast<double>(got[k * p.rows + r])));
        }
        // The step follows from the largest code of the type, which need not occur: up to a third more.
        CHECK(error <= 0.55 * (amax * 1.35 / 127));
      }
    }
  }
}

double nmse(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, power = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    power += want[i] * want[i];
  }
  return error / power;
}

TEST("re-quantised products are within 2e-4 of the others, and 5e-4 of float64") {
  std::mt19937 source(34);
  const Table& scalar = *kernels::table(Isa::scalar);
  for (const Type type : kQuantised) {
    const Problem p = random_problem(type, 64, 1024, 24, source);
    const std::vector<float> w = weights_of(p), got = multiply_u8(scalar, p);
    std::vector<float> usual(got.size());
    const Buffer acts = quantize(scalar, kernels::act_format(type), p);
    scalar.matmul(type, p.weights.data(), p.rows, p.n, acts.data(), p.cols, usual.data(), p.rows);
    std::vector<double> truth(got.size());
    for (size_t i = 0; i < truth.size(); ++i) {
      for (size_t k = 0; k < p.n; ++k)
        truth[i] +=
            static_cast<double>(w[i % p.rows * p.n + k]) * static_cast<double>(p.x[i / p.rows * p.n + k]);
    }
    CHECK(nmse(got, std::vector<double>(usual.begin(), usual.end())) <= 2e-4);
    CHECK(nmse(got, truth) <= 5e-4);
  }
}

// Blocks whose codes and small scales are all one byte value: the largest factors and the largest sums.
TEST("the extremes of every code do not saturate when re-quantised") {
  std::mt19937 source(35);
  for (const Type type : kQuantised) {
    for (const int fill : {0x00, 0xff, 0x7f, 0x80, 0x81, 0xf0, 0x0f, 0x55, 0xaa}) {
      Problem p = random_problem(type, 18, 512, 18, source);
      std::fill(p.weights.begin(), p.weights.end(), static_cast<std::byte>(fill));
      const test::ScaleOffsets at = test::scale_offsets(type);
      for (size_t b = 0; b < p.weights.size(); b += quant::info(type).block_bytes) {
        for (const uint8_t offset : {at.first, at.second}) {
          if (offset != 0xff) test::put_u16(p.weights.data() + b + offset, quant::f32_to_f16(0.5f));
        }
      }
      for (size_t i = 0; i < p.x.size(); ++i) p.x[i] = i / p.n % 2 == 0 || i % 2 == 0 ? 1.0f : -1.0f;
      const std::vector<float> w = weights_of(p), want = multiply_u8(*kernels::table(Isa::scalar), p);
      double size = 0, sum = 0;
      for (size_t k = 0; k < p.n; ++k) {
        size += std::fabs(static_cast<double>(w[k]));
        sum += static_cast<double>(w[k]);
      }
      CHECK(std::fabs(static_cast<double>(want[0]) - sum) <= 0.02 * size);
      for (const Table* t : u8_tables()) {
        const std::vector<float> got = multiply_u8(*t, p);
        CHECK(same_bits(got.data(), want.data(), got.size()));
      }
    }
  }
}

TEST("scales of zero, tiny and not finite: zeros, and NaN where there is one") {
  std::mt19937 source(36);
  for (const Type type : kQuantised) {
    const test::ScaleOffsets at = test::scale_offsets(type);
    for (const uint16_t half : {uint16_t{0}, uint16_t{1}, uint16_t{0x7c00}, uint16_t{0x7e00}}) {
      Problem p = random_problem(type, 3, 512, 20, source);
      test::put_u16(p.weights.data() + at.first, half);  // of the first row's first block
      const std::vector<float> want = multiply_u8(*kernels::table(Isa::scalar), p);
      CHECK(std::isnan(want[0]) == (half >= 0x7c00));
      CHECK(std::isfinite(want[1]));
      for (const Table* t : u8_tables()) {
        const std::vector<float> got = multiply_u8(*t, p);
        for (size_t i = 0; i < got.size(); ++i) {
          const bool both = std::isnan(got[i]) && std::isnan(want[i]);
          CHECK(both || same_bits(&got[i], &want[i], 1));
        }
      }
    }
  }
}

// The same bits however rows and columns are grouped, and nothing else is written.
using Product = decltype(Table::matmul);
void check_grouping(Product matmul, const Problem& p, const Buffer& acts, size_t act_bytes,
                    std::mt19937& source) {
  const size_t row_bytes = quant::row_bytes(p.type, p.n);
  std::vector<float> all(p.rows * p.cols);
  matmul(p.type, p.weights.data(), p.rows, p.n, acts.data(), p.cols, all.data(), p.rows);
  for (int i = 0; i < 40; ++i) {
    const size_t rows = 1 + source() % p.rows, cols = 1 + source() % p.cols;
    const size_t r = source() % (p.rows - rows + 1), c = source() % (p.cols - cols + 1), ldo = rows + 3;
    std::vector<float> part(cols * ldo, 7.0f);
    matmul(p.type, p.weights.data() + r * row_bytes, rows, p.n, acts.data() + c * act_bytes, cols,
           part.data(), ldo);
    bool right = true;
    for (size_t j = 0; j < cols; ++j) {
      right = right && same_bits(part.data() + j * ldo, all.data() + (c + j) * p.rows + r, rows);
      for (size_t k = rows; k < ldo; ++k) right = right && part[j * ldo + k] == 7.0f;
    }
    CHECK(right);
  }
}

TEST("re-quantised products: any grouping gives the same bits, and nothing else is written") {
  std::mt19937 source(37);
  for (const Table* t : u8_tables()) {
    for (const Type type : {Type::q8_0, Type::q4_k}) {
      const Problem p = random_problem(type, 150, type == Type::q8_0 ? 896 : 1280, 53, source);
      check_grouping(t->matmul_u8, p, quantize(*t, kernels::ActFormat::u8_256, p),
                     kernels::act_row_bytes(kernels::ActFormat::u8_256, p.n), source);
    }
  }
}

// ---- bf16 -----------------------------------------------------------------------------------------

std::vector<const Table*> bf16_tables() {
  std::vector<const Table*> tables;
  for (const Table* t : all_tables()) {
    if (t->matmul_bf16 != nullptr) tables.push_back(t);
  }
  if (tables.empty()) std::printf("skipped: no table here has products of bf16\n");
  return tables;
}

float rounded_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

TEST("bf16 products are the sums of rounded weights and activations") {
  std::mt19937 source(21);
  for (const Table* t : bf16_tables()) {
    for (const Type type : {Type::f32, Type::f16, Type::bf16}) {
      for (const size_t n : lengths(type)) {
        const Problem p = random_problem(type, 1 + source() % 70, n, 17 + source() % 50, source);
        const std::vector<float> w = weights_of(p);
        std::vector<float> got(p.rows * p.cols);
        t->matmul_bf16(type, p.weights.data(), p.rows, n, quantize(*t, kernels::ActFormat::bf16, p).data(),
                       p.cols, got.data(), p.rows);
        double error = 0, power = 0;
        for (size_t i = 0; i < got.size(); ++i) {
          const float *row = w.data() + i % p.rows * n, *x = p.x.data() + i / p.rows * n;
          double want = 0;
          for (size_t k = 0; k < n; ++k)
            want += static_cast<double>(rounded_to_bf16(row[k])) * static_cast<double>(rounded_to_bf16(x[k]));
          error += std::pow(want - static_cast<double>(got[i]), 2);
          power += want * want;
        }
        CHECK(error <= 1e-8 * power);  // float sums
      }
    }
  }
}

TEST("bf16 products: any grouping gives the same bits, and nothing else is written") {
  std::mt19937 source(22);
  for (const Table* t : bf16_tables()) {
    for (const Type type : {Type::f32, Type::f16, Type::bf16}) {
      const Problem p = random_problem(type, 75, 777, 53, source);
      check_grouping(t->matmul_bf16, p, quantize(*t, kernels::ActFormat::bf16, p),
                     kernels::act_row_bytes(kernels::ActFormat::bf16, p.n), source);
    }
  }
}

#if defined(__unix__)
TEST("weights that end at the end of a mapping are read no further by products of many columns") {
  std::mt19937 source(38);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const Table* t : fast_tables()) {
    for (const Type type : test::kAllTypes) {
      const kernels::Method method = kernels::method(*t, type, true);
      for (const size_t n : lengths(type)) {
        const Problem p = random_problem(type, 3, n, 20, source);
        const size_t size = p.weights.size(), whole = (size + page - 1) / page * page;
        void* map = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(map != MAP_FAILED);
        auto* base = static_cast<std::byte*>(map);
        REQUIRE(mprotect(base + whole, page, PROT_NONE) == 0);
        std::byte* weights = base + whole - size;
        std::memcpy(weights, p.weights.data(), size);
        const Buffer acts = quantize(*t, method.format, p);
        std::vector<float> got(p.rows * p.cols), want(got.size());
        method.matmul(type, weights, p.rows, n, acts.data(), p.cols, got.data(), p.rows);
        method.matmul(type, p.weights.data(), p.rows, n, acts.data(), p.cols, want.data(), p.rows);
        CHECK(same_bits(got.data(), want.data(), got.size()));
        munmap(map, whole + page);
      }
    }
  }
}
#endif

}  // namespace

SELM_TEST_MAIN
