// Every fast table against the scalar one, and the scalar one against float64.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "blocks.h"
#include "check.h"
#include "kernels/kernels.h"
#include "quant/dequantize.h"
#include "quant/unpack.h"
#include "tables.h"

namespace {

using namespace selm;
using namespace selm::test;
using quant::Type;

Buffer quantize(const Table& t, const Problem& p) {
  return test::quantize(t, kernels::act_format(p.type), p);
}

std::vector<float> multiply(const Table& t, const Problem& p, const Buffer& acts) {
  std::vector<float> out(p.rows * p.cols, std::numeric_limits<float>::quiet_NaN());
  t.matmul(p.type, p.weights.data(), p.rows, p.n, acts.data(), p.cols, out.data(), p.rows);
  return out;
}

// |scale * code| + |minimum| of every weight: those two may cancel, their rounding errors do not.
std::vector<double> weight_sizes(const Problem& p) {
  const std::vector<float> w = weights_of(p);
  std::vector<double> out(w.size());
  const quant::TypeInfo& info = quant::info(p.type);
  quant::Block32 b32;
  quant::Block256 b256;
  for (size_t i = 0; i < w.size(); ++i) {
    const std::byte* block = p.weights.data() + i / info.block_size * info.block_bytes;
    const size_t k = i % info.block_size;
    if (info.block_size == 32) {
      if (k == 0) quant::unpack32(p.type)(block, b32);
      out[i] = std::fabs(static_cast<double>(b32.d * static_cast<float>(b32.q[k]))) +
               std::fabs(static_cast<double>(b32.m));
    } else if (info.block_size == 256) {
      if (k == 0) quant::unpack256(p.type)(block, b256);
      out[i] = std::fabs(static_cast<double>(b256.d * static_cast<float>(b256.scale[k / 16] * b256.q[k]))) +
               std::fabs(static_cast<double>(b256.dmin * static_cast<float>(b256.min[k / 16])));
    } else {
      out[i] = std::fabs(static_cast<double>(w[i]));
    }
  }
  return out;
}

// What the rounding errors of each output are measured against.
std::vector<double> magnitudes(const Problem& p) {
  const std::vector<double> w = weight_sizes(p);
  std::vector<double> out(p.rows * p.cols);
  for (size_t c = 0; c < p.cols; ++c) {
    for (size_t r = 0; r < p.rows; ++r) {
      for (size_t k = 0; k < p.n; ++k) {
        out[c * p.rows + r] += w[r * p.n + k] * std::fabs(static_cast<double>(p.x[c * p.n + k]));
      }
    }
  }
  return out;
}

// The integer sums are exact on every table, so only the few float operations differ.
void compare_with_scalar(const Table& t, const Problem& p) {
  const Table& scalar = *kernels::table(Isa::scalar);
  const Buffer acts = quantize(scalar, p);
  const std::vector<float> want = multiply(scalar, p, acts), got = multiply(t, p, acts);
  const std::vector<double> size = magnitudes(p);
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(error <= 1e-6 * size[i] + 1e-30)) {
      test::fail(__FILE__, __LINE__,
                 std::string(t.name) + " " + quant::info(p.type).name + " rows " + std::to_string(p.rows) +
                     " n " + std::to_string(p.n) + " cols " + std::to_string(p.cols) + " at " +
                     std::to_string(i) + ": " + std::to_string(got[i]) + " for " + std::to_string(want[i]));
      return;
    }
  }
}

TEST("every type and table agrees with the scalar table") {
  std::mt19937 source(1);
  for (const Table* t : fast_tables()) {
    for (const Type type : test::kAllTypes) {
      for (const size_t n : lengths(type)) {
        for (const auto& [rows, cols] :
             {std::pair<size_t, size_t>{1, 1}, {5, 3}, {17, 6}, {33, 9}, {40, 18}}) {
          compare_with_scalar(*t, random_problem(type, rows, n, cols, source));
        }
      }
    }
  }
}

TEST("products are near float64 of the dequantised weights") {
  std::mt19937 source(2);
  for (const Table* t : all_tables()) {
    for (const Type type : test::kAllTypes) {
      const Problem p = random_problem(type, 24, 1024, 12, source);
      const std::vector<float> w = weights_of(p), got = multiply(*t, p, quantize(*t, p));
      double error = 0, power = 0;
      for (size_t c = 0; c < p.cols; ++c) {
        for (size_t r = 0; r < p.rows; ++r) {
          double sum = 0;
          for (size_t k = 0; k < p.n; ++k) {
            sum += static_cast<double>(w[r * p.n + k]) * static_cast<double>(p.x[c * p.n + k]);
          }
          const double difference = sum - static_cast<double>(got[c * p.rows + r]);
          error += difference * difference;
          power += sum * sum;
        }
      }
      CHECK(error <= 5e-4 * power);
    }
  }
}

TEST("an output has the same bits however rows and columns are grouped") {
  std::mt19937 source(3);
  for (const Table* t : all_tables()) {
    for (const Type type : test::kAllTypes) {
      const size_t n =
          quant::info(type).block_size == 1 ? 200 : 2304 + (quant::info(type).block_size == 32 ? 96 : 0);
      const Problem p = random_problem(type, 37, n, 21, source);
      const Buffer acts = quantize(*t, p);
      const std::vector<float> all = multiply(*t, p, acts);
      const size_t row_bytes = quant::row_bytes(type, n);
      const size_t act_bytes = kernels::act_row_bytes(kernels::act_format(type), n);
      bool same = true;
      for (const size_t cols : std::initializer_list<size_t>{1, 2, 3, 4, 5, 7, 8, 13, 16}) {
        for (const size_t rows : std::initializer_list<size_t>{1, 4, 16, 19, 36}) {
          const size_t r = source() % (p.rows - rows + 1), c = source() % (p.cols - cols + 1);
          std::vector<float> part(rows * cols);
          t->matmul(type, p.weights.data() + r * row_bytes, rows, n, acts.data() + c * act_bytes, cols,
                    part.data(), rows);
          for (size_t i = 0; i < cols; ++i) {
            same = same && same_bits(part.data() + i * rows, all.data() + (c + i) * p.rows + r, rows);
          }
        }
      }
      CHECK(same);
    }
  }
}

TEST("the tables of aarch64 give the same bits") {
  const Table* neon = kernels::table(Isa::neon);
  if (neon == nullptr) return;
  std::mt19937 source(12);
  for (const Isa isa : {Isa::dotprod, Isa::i8mm}) {
    const Table* t = kernels::table(isa);
    if (t == nullptr) continue;
    for (const Type type : test::kAllTypes) {
      for (const size_t n : lengths(type)) {
        for (const size_t cols : std::initializer_list<size_t>{1, 2, 14}) {
          const Problem p = random_problem(type, 13, n, cols, source);
          const Buffer acts = quantize(*neon, p);
          const std::vector<float> want = multiply(*neon, p, acts), got = multiply(*t, p, acts);
          CHECK(same_bits(want.data(), got.data(), want.size()));
        }
      }
    }
  }
}

TEST("outputs go to columns ldo apart and nothing else is written") {
  std::mt19937 source(4);
  for (const Table* t : all_tables()) {
    for (const Type type : test::kAllTypes) {
      for (const size_t cols : std::initializer_list<size_t>{1, 3, 11}) {
        const Problem p = random_problem(type, 19, 256, cols, source);
        const Buffer acts = quantize(*t, p);
        const std::vector<float> want = multiply(*t, p, acts);
        constexpr size_t kLdo = 31;
        std::vector<float> out(cols * kLdo, 7.0f);
        t->matmul(type, p.weights.data(), p.rows, p.n, acts.data(), cols, out.data(), kLdo);
        bool right = true;
        for (size_t c = 0; c < cols; ++c) {
          right = right && same_bits(out.data() + c * kLdo, want.data() + c * p.rows, p.rows);
          for (size_t i = p.rows; i < kLdo; ++i) right = right && out[c * kLdo + i] == 7.0f;
        }
        CHECK(right);
      }
    }
  }
}

#if defined(__unix__)
TEST("weights that end at the end of a mapping, at any alignment, are read no further") {
  std::mt19937 source(5);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const Table* t : all_tables()) {
    for (const Type type : test::kAllTypes) {
      for (const size_t n : lengths(type)) {
        for (const size_t cols : std::initializer_list<size_t>{1, 9}) {
          const Problem p = random_problem(type, 3, n, cols, source);
          const size_t size = p.weights.size(), whole = (size + page - 1) / page * page;
          void* map = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          REQUIRE(map != MAP_FAILED);
          auto* base = static_cast<std::byte*>(map);
          REQUIRE(mprotect(base + whole, page, PROT_NONE) == 0);
          std::byte* weights = base + whole - size;
          std::memcpy(weights, p.weights.data(), size);
          const Buffer acts = quantize(*t, p);
          const std::vector<float> want = multiply(*t, p, acts);
          std::vector<float> got(p.rows * p.cols);
          t->matmul(type, weights, p.rows, n, acts.data(), cols, got.data(), p.rows);
          CHECK(same_bits(got.data(), want.data(), got.size()));
          munmap(map, whole + page);
        }
      }
    }
  }
}
#endif

// Blocks whose codes and small scales are all one byte value, and activations of full size.
TEST("the extremes of every code do not saturate") {
  std::mt19937 source(6);
  for (const Table* t : fast_tables()) {
    for (const Type type : test::kAllTypes) {
      const quant::TypeInfo& info = quant::info(type);
      if (info.block_size == 1) continue;
      for (const int fill : {0x00, 0xff, 0x7f, 0x80, 0x81, 0xf0, 0x0f, 0x55, 0xaa}) {
        for (const int sign : {1, -1, 0}) {  // 0: alternating
          Problem p = random_problem(type, 18, 512, 7, source);
          std::fill(p.weights.begin(), p.weights.end(), static_cast<std::byte>(fill));
          const test::ScaleOffsets at = test::scale_offsets(type);
          for (size_t b = 0; b < p.weights.size(); b += info.block_bytes) {
            for (const uint8_t offset : {at.first, at.second}) {
              if (offset != 0xff) test::put_u16(p.weights.data() + b + offset, quant::f32_to_f16(0.5f));
            }
          }
          for (size_t i = 0; i < p.x.size(); ++i) {
            p.x[i] = sign != 0 ? static_cast<float>(sign) : i % 2 == 0 ? 1.0f : -1.0f;
          }
          compare_with_scalar(*t, p);
        }
      }
    }
  }
}

TEST("quantised activations are the same bytes on every table") {
  std::mt19937 source(7);
  const float inf = std::numeric_limits<float>::infinity();
  for (const Table* t : fast_tables()) {
    for (const kernels::ActFormat format :
         {kernels::ActFormat::f32, kernels::ActFormat::q8_32, kernels::ActFormat::q8_256}) {
      for (const float spread : {1.0f, 1e-20f, 1e-33f, 1e-40f, 1e30f}) {
        for (const size_t n : std::initializer_list<size_t>{256, 1280}) {
          std::vector<float> x = random_floats(n, source, spread);
          if (spread == 1.0f) {  // ties to even, zeros, and every kind of non-number
            for (size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i) - 15.5f;
            x[0] = 127.0f;
            x[64] = inf;
            x[97] = -inf;
            x[130] = std::numeric_limits<float>::quiet_NaN();
            std::fill(x.begin() + 160, x.begin() + 192, 0.0f);
          }
          const size_t bytes = kernels::act_row_bytes(format, n);
          CHECK(bytes % 64 == 0);
          Buffer want(bytes), got(bytes);
          std::memset(got.data(), 0x5a, bytes);
          kernels::table(Isa::scalar)->quantize_row(format, x.data(), n, want.data());
          t->quantize_row(format, x.data(), n, got.data());
          CHECK(std::memcmp(want.data(), got.data(), bytes) == 0);
        }
      }
    }
  }
}

TEST("zeros give zeros; infinities and NaN in activations show in the outcome") {
  std::mt19937 source(8);
  for (const Table* t : all_tables()) {
    for (const Type type : test::kAllTypes) {
      for (const size_t cols : std::initializer_list<size_t>{1, 8}) {
        Problem p = random_problem(type, 5, 512, cols, source);
        p.x[p.n - 3] = std::numeric_limits<float>::quiet_NaN();  // column 0
        std::vector<float> out = multiply(*t, p, quantize(*t, p));
        for (size_t i = 0; i < out.size(); ++i) CHECK(std::isnan(out[i]) == (i < p.rows));
        p.x[p.n - 3] = std::numeric_limits<float>::infinity();
        out = multiply(*t, p, quantize(*t, p));
        for (size_t i = 0; i < out.size(); ++i) CHECK(std::isfinite(out[i]) == (i >= p.rows));
        std::fill(p.x.begin(), p.x.end(), 0.0f);
        for (const float y : multiply(*t, p, quantize(*t, p))) CHECK(y == 0.0f);
      }
    }
  }
}

TEST("no rows, no columns, no elements") {
  for (const Table* t : all_tables()) {
    for (const Type type : test::kAllTypes) {
      Buffer act(4096);
      float out[2] = {7, 7};
      t->matmul(type, nullptr, 0, 256, act.data(), 1, out, 1);
      CHECK(out[0] == 7);
      t->matmul(type, act.data(), 1, 256, act.data(), 0, out, 1);
      CHECK(out[0] == 7);
      t->matmul(type, act.data(), 2, 0, act.data(), 1, out, 2);
      CHECK(out[0] == 0 && out[1] == 0);
    }
  }
}

TEST("tables by name; the best is there") {
  for (const Table* t : all_tables()) std::printf("tested: %s\n", t->name);
  CHECK(kernels::by_name("scalar") == kernels::table(Isa::scalar));
  CHECK(kernels::by_name("nothing") == nullptr && kernels::by_name("") == nullptr);
  const Table* best = all_tables().back();
  CHECK(kernels::best() == (best->isa == Isa::amx ? kernels::table(Isa::avx512) : best));
  for (const Table* t : all_tables()) CHECK(kernels::by_name(t->name) == t && kernels::table(t->isa) == t);
}

}  // namespace

SELM_TEST_MAIN
