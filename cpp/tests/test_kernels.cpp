// Every fast table against the scalar one, and the scalar one against float64.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
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

namespace {

using namespace selm;
using kernels::Isa;
using kernels::Table;
using quant::Type;

std::vector<const Table*> fast_tables() {
  std::vector<const Table*> tables;
  for (const Isa isa : kernels::kAllIsas) {
    if (const Table* t = kernels::table(isa); t != nullptr && isa != Isa::scalar) tables.push_back(t);
  }
  return tables;
}
std::vector<const Table*> all_tables() {
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

std::vector<float> random_floats(size_t n, std::mt19937& source, float spread = 1) {
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

Problem random_problem(Type type, size_t rows, size_t n, size_t cols, std::mt19937& source) {
  Problem p{type, rows, n, cols, {}, random_floats(cols * n, source)};
  for (size_t r = 0; r < rows; ++r) {
    const std::vector<std::byte> row = test::random_row(type, n, source);
    p.weights.insert(p.weights.end(), row.begin(), row.end());
  }
  return p;
}

Buffer quantize(const Table& t, const Problem& p) {
  const kernels::ActFormat format = kernels::act_format(p.type);
  const size_t bytes = kernels::act_row_bytes(format, p.n);
  Buffer acts(bytes * p.cols);
  for (size_t c = 0; c < p.cols; ++c)
    t.quantize_row(format, p.x.data() + c * p.n, p.n, acts.data() + c * bytes);
  return acts;
}

std::vector<float> multiply(const Table& t, const Problem& p, const Buffer& acts) {
  std::vector<float> out(p.rows * p.cols, std::numeric_limits<float>::quiet_NaN());
  t.matmul(p.type, p.weights.data(), p.rows, p.n, acts.data(), p.cols, out.data(), p.rows);
  return out;
}

std::vector<float> weights_of(const Problem& p) {
  std::vector<float> w(p.rows * p.n);
  for (size_t r = 0; r < p.rows; ++r) {
    quant::dequantize_row(p.type, p.weights.data() + r * quant::row_bytes(p.type, p.n), w.data() + r * p.n,
                          p.n);
  }
  return w;
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

bool same_bits(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

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

// Row lengths: one block, some that fill no vector, more than one piece of the kernels.
std::vector<size_t> lengths(Type type) {
  switch (quant::info(type).block_size) {
    case 32:
      return {32, 64, 96, 160, 512, 544, 896, 2048 + 32, 4864};
    case 256:
      return {256, 512, 768, 1280, 2048, 2304, 4864 + 256};
    default:
      return {1, 7, 16, 33, 100, 896};
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

// ---- The rest of a layer ----------------------------------------------------------------------

bool near(float a, float b, double tolerance) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return a == b;
  return std::fabs(static_cast<double>(a) - static_cast<double>(b)) <= tolerance;
}
bool near_relative(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!near(a[i], b[i], tolerance * std::fabs(static_cast<double>(b[i])) + 1e-37)) return false;
  }
  return true;
}

TEST("norm, sum and gate agree with the scalar table") {
  std::mt19937 source(9);
  const Table& scalar = *kernels::table(Isa::scalar);
  for (const Table* t : fast_tables()) {
    for (const size_t n : std::initializer_list<size_t>{1, 15, 16, 17, 64, 100, 896, 4097}) {
      const std::vector<float> x = random_floats(n, source, 4), y = random_floats(n, source, 20);
      std::vector<float> a(n), b(n);
      scalar.rms_norm(x.data(), y.data(), a.data(), n, 1e-6f);
      t->rms_norm(x.data(), y.data(), b.data(), n, 1e-6f);
      CHECK(near_relative(b, a, 4e-7));
      b = x;
      t->rms_norm(b.data(), y.data(), b.data(), n, 1e-6f);  // in place
      CHECK(near_relative(b, a, 4e-7));
      a = b = x;
      scalar.add(a.data(), y.data(), n);
      t->add(b.data(), y.data(), n);
      CHECK(same_bits(a.data(), b.data(), n));
      scalar.silu_mul(y.data(), x.data(), a.data(), n);
      t->silu_mul(y.data(), x.data(), b.data(), n);
      CHECK(near_relative(b, a, 1e-6));
    }
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> gate = {0.0f,  -0.0f,  100.0f, -80.0f, -95.0f, -200.0f,
                                     1e30f, -1e30f, inf,    nan,    1e-40f};
    const std::vector<float> one(gate.size(), 1.0f);
    std::vector<float> a(gate.size()), b(gate.size());
    scalar.silu_mul(gate.data(), one.data(), a.data(), gate.size());
    t->silu_mul(gate.data(), one.data(), b.data(), gate.size());
    CHECK(near_relative(b, a, 1e-6));
  }
}

TEST("rotation agrees with the scalar table in both pairings") {
  std::mt19937 source(10);
  for (const Table* t : fast_tables()) {
    for (const size_t n_rot : std::initializer_list<size_t>{2, 6, 16, 18, 32, 50, 64, 96, 128}) {
      for (const bool neox : {false, true}) {
        std::vector<float> turn(n_rot);
        for (size_t i = 0; i < n_rot; i += 2) {
          const float angle = static_cast<float>(source() % 1000) / 100;
          turn[i] = std::cos(angle);
          turn[i + 1] = std::sin(angle);
        }
        std::vector<float> a = random_floats(n_rot + 3, source), b = a;
        kernels::table(Isa::scalar)->rope(a.data(), turn.data(), n_rot, neox);
        t->rope(b.data(), turn.data(), n_rot, neox);
        bool right = true;
        for (size_t i = 0; i < a.size(); ++i) right = right && near(a[i], b[i], 1e-6);
        CHECK(right);
        CHECK(same_bits(a.data() + n_rot, b.data() + n_rot, 3));
      }
    }
  }
}

TEST("half precision: every half, and every boundary between two, on every table") {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  for (const Table* t : all_tables()) {
    std::vector<float> x(halves.size());
    t->from_f16(halves.data(), x.data(), x.size());
    bool right = true;
    for (size_t i = 0; i < x.size(); ++i) {  // the value by its definition
      const int exponent = static_cast<int>(i >> 10 & 31), mantissa = static_cast<int>(i & 1023);
      const double sign = i & 0x8000u ? -1 : 1;
      if (exponent == 31 && mantissa != 0) {
        right = right && std::isnan(x[i]);
        continue;
      }
      const double value = exponent == 31  ? std::numeric_limits<double>::infinity()
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
      right = right && static_cast<double>(x[i]) == sign * value && std::signbit(x[i]) == std::signbit(sign);
    }
    CHECK(right);
    std::vector<uint16_t> back(x.size());
    t->to_f16(x.data(), back.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      right = right && (std::isnan(x[i]) ? (back[i] & 0x7fffu) > 0x7c00u : back[i] == halves[i]);
    }
    CHECK(right);
    // Midpoints of neighbours go to the even one, a hair to either side to the nearer.
    for (uint32_t i = 0; i < 0x7c00u; ++i) {
      const double upper = i + 1 == 0x7c00u ? 65536.0 : static_cast<double>(x[i + 1]);
      const auto middle = static_cast<float>((static_cast<double>(x[i]) + upper) / 2);
      const float in[3] = {std::nextafterf(middle, 0), middle, std::nextafterf(middle, 1e30f)};
      uint16_t out[3];
      t->to_f16(in, out, 3);
      right = right && out[0] == i && out[1] == i + (i & 1u) && out[2] == i + 1;
    }
    CHECK(right);
    const float odd[] = {1e30f, -1e30f, 1e-30f, -1e-30f, 0.0f, -0.0f, 65519.0f};
    uint16_t out[7];
    t->to_f16(odd, out, 7);
    const uint16_t want[] = {0x7c00, 0xfc00, 0, 0x8000, 0, 0x8000, 0x7bff};
    CHECK(std::memcmp(out, want, sizeof want) == 0);
  }
}

// The cache's rows in a format, and the numbers that they hold.
struct CachedRows {
  std::vector<std::byte> bytes;
  std::vector<float> values;
  size_t stride;
};
CachedRows cached(kernels::KvFormat format, size_t n_pos, size_t n, size_t widest, std::mt19937& source) {
  CachedRows rows{{}, random_floats(n_pos * n, source), kernels::kv_row_bytes(format, widest) + 6};
  rows.bytes.resize(n_pos * rows.stride);
  const Table* scalar = kernels::table(Isa::scalar);
  for (size_t p = 0; p < n_pos; ++p) {
    std::byte* row = rows.bytes.data() + p * rows.stride;
    float* x = rows.values.data() + p * n;
    if (format == kernels::KvFormat::f32) {
      std::memcpy(row, x, n * sizeof *x);
    } else if (format == kernels::KvFormat::f16) {
      scalar->to_f16(x, reinterpret_cast<uint16_t*>(row), n);
      scalar->dequantize_row(Type::f16, row, x, n);
    } else {
      kernels::quantize_q8_0(x, n, row);
      scalar->dequantize_row(Type::q8_0, row, x, n);
    }
  }
  return rows;
}

// softmax(scale * q.k) v in float64.
std::vector<double> true_attention(const float* q, const CachedRows& k, const CachedRows& v, size_t n_pos,
                                   size_t d_k, size_t d_v, float scale) {
  std::vector<double> weight(n_pos), out(d_v, 0.0);
  double total = 0;
  for (size_t p = 0; p < n_pos; ++p) {
    double dot = 0;
    for (size_t d = 0; d < d_k; ++d)
      dot += static_cast<double>(q[d]) * static_cast<double>(k.values[p * d_k + d]);
    total += weight[p] = std::exp(dot * static_cast<double>(scale));
  }
  for (size_t p = 0; p < n_pos; ++p)
    for (size_t d = 0; d < d_v; ++d) out[d] += weight[p] / total * static_cast<double>(v.values[p * d_v + d]);
  return out;
}

// All queries of a tile over all chunks, as an engine does it.
std::vector<float> attend_in_tiles(const Table* t, kernels::KvFormat format, const CachedRows& k,
                                   const CachedRows& v, const std::vector<const float*>& queries,
                                   const std::vector<size_t>& seen, size_t tile, size_t d_k, size_t d_v,
                                   float scale) {
  const size_t stride = kernels::partial_floats(d_v);
  std::vector<float> scratch(kernels::attention_scratch_floats(d_k, d_v) + 16), out(queries.size() * d_v);
  for (size_t first = 0; first < queries.size(); first += tile) {
    const size_t n = std::min(tile, queries.size() - first);
    const size_t longest = *std::max_element(seen.begin() + static_cast<std::ptrdiff_t>(first),
                                             seen.begin() + static_cast<std::ptrdiff_t>(first + n));
    std::vector<float> states(n * stride), partials(n * stride);
    for (size_t from = 0; from < longest; from += kernels::kChunk) {
      std::vector<uint32_t> visible(n);
      for (size_t r = 0; r < n; ++r) {
        const size_t end = std::min(from + kernels::kChunk, seen[first + r]);
        visible[r] = end > from ? static_cast<uint32_t>(end - from) : 0;
      }
      const kernels::AttentionChunk chunk{format,
                                          k.bytes.data() + from * k.stride,
                                          v.bytes.data() + from * v.stride,
                                          k.stride,
                                          std::min(kernels::kChunk, longest - from),
                                          d_k,
                                          d_v,
                                          scale};
      float* into = from == 0 ? states.data() : partials.data();
      t->attend(chunk, queries.data() + first, visible.data(), n, scratch.data(), into);
      for (size_t r = 0; from != 0 && r < n; ++r)
        kernels::fold_partial(states.data() + r * stride, partials.data() + r * stride, d_v);
    }
    for (size_t r = 0; r < n; ++r)
      kernels::finish_partial(states.data() + r * stride, d_v, out.data() + (first + r) * d_v);
  }
  return out;
}

TEST("attention agrees with float64, and a query's bits do not depend on its neighbours") {
  std::mt19937 source(11);
  using kernels::KvFormat;
  for (const Table* t : all_tables()) {
    for (const auto& [d_k, d_v] :
         {std::pair<size_t, size_t>{64, 64}, {128, 128}, {80, 96}, {7, 5}, {16, 72}, {96, 32}}) {
      for (const KvFormat format : {KvFormat::f16, KvFormat::f32, KvFormat::q8_0}) {
        if (format == KvFormat::q8_0 && (d_k % 32 != 0 || d_v % 32 != 0)) continue;
        for (const size_t n_pos : std::initializer_list<size_t>{1, 2, 33, 100, 256, 257, 700}) {
          const float scale = 1.5f / std::sqrt(static_cast<float>(d_k));
          const size_t widest = std::max(d_k, d_v);
          const CachedRows k = cached(format, n_pos, d_k, widest, source);
          const CachedRows v = cached(format, n_pos, d_v, widest, source);
          const size_t n_queries = 1 + source() % kernels::kMaxQueries;
          const std::vector<float> q = random_floats(n_queries * d_k, source);
          std::vector<const float*> queries;
          std::vector<size_t> seen;
          for (size_t r = 0; r < n_queries; ++r) {
            queries.push_back(q.data() + r * d_k);
            seen.push_back(r == 0 ? n_pos : 1 + source() % n_pos);
          }
          const std::vector<float> out =
              attend_in_tiles(t, format, k, v, queries, seen, kernels::kMaxQueries, d_k, d_v, scale);
          bool right = true;
          for (size_t r = 0; r < n_queries; ++r) {
            const std::vector<double> truth = true_attention(queries[r], k, v, seen[r], d_k, d_v, scale);
            for (size_t d = 0; d < d_v; ++d)
              right = right && near(out[r * d_v + d], static_cast<float>(truth[d]), 3e-6);
          }
          CHECK(right);
          for (const size_t tile : {size_t{1}, size_t{5}})
            CHECK(attend_in_tiles(t, format, k, v, queries, seen, tile, d_k, d_v, scale) == out);
        }
      }
    }
  }
}

TEST("a q8_0 cache shows what is not finite, and keeps zeros and the largest") {
  std::vector<float> x(64, 0.0f);
  std::vector<std::byte> row(kernels::kv_row_bytes(kernels::KvFormat::q8_0, 64));
  x[3] = 2.0f;
  x[4] = -2.0f;
  x[40] = std::numeric_limits<float>::quiet_NaN();
  kernels::quantize_q8_0(x.data(), 64, row.data());
  kernels::table(Isa::scalar)->dequantize_row(Type::q8_0, row.data(), x.data(), 64);
  CHECK(near(x[3], 2.0f, 1e-3) && near(x[4], -2.0f, 1e-3) && x[5] == 0.0f && std::isnan(x[40]));
}

TEST("tables by name; the best is there") {
  for (const Table* t : all_tables()) std::printf("tested: %s\n", t->name);
  CHECK(kernels::by_name("scalar") == kernels::table(Isa::scalar));
  CHECK(kernels::by_name("nothing") == nullptr && kernels::by_name("") == nullptr);
  CHECK(kernels::best() == all_tables().back());
  for (const Table* t : all_tables()) CHECK(kernels::by_name(t->name) == t && kernels::table(t->isa) == t);
}

}  // namespace

SELM_TEST_MAIN
