// The kernels of a layer beside its products: norm, gate, rotation, half precision, attention.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "tables.h"

namespace {

using namespace selm;
using namespace selm::test;
using quant::Type;

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

// The positions that a query sees.
struct Span {
  size_t from, to;
};

// softmax(scale * q.k) v in float64.
std::vector<double> true_attention(const float* q, const CachedRows& k, const CachedRows& v, Span seen,
                                   size_t d_k, size_t d_v, float scale) {
  std::vector<double> weight(seen.to), out(d_v, 0.0);
  double total = 0;
  for (size_t p = seen.from; p < seen.to; ++p) {
    double dot = 0;
    for (size_t d = 0; d < d_k; ++d)
      dot += static_cast<double>(q[d]) * static_cast<double>(k.values[p * d_k + d]);
    total += weight[p] = std::exp(dot * static_cast<double>(scale));
  }
  for (size_t p = seen.from; p < seen.to; ++p)
    for (size_t d = 0; d < d_v; ++d) out[d] += weight[p] / total * static_cast<double>(v.values[p * d_v + d]);
  return out;
}

// All queries of a tile over all chunks, as an engine does it.
std::vector<float> attend_in_tiles(const Table* t, kernels::KvFormat format, const CachedRows& k,
                                   const CachedRows& v, const std::vector<const float*>& queries,
                                   const std::vector<Span>& seen, size_t tile, size_t d_k, size_t d_v,
                                   float scale) {
  const size_t stride = kernels::partial_floats(d_v);
  std::vector<float> scratch(kernels::attention_scratch_floats(d_k, d_v) + 16), out(queries.size() * d_v);
  for (size_t first = 0; first < queries.size(); first += tile) {
    const size_t n = std::min(tile, queries.size() - first);
    size_t longest = 0;
    for (size_t r = first; r < first + n; ++r) longest = std::max(longest, seen[r].to);
    std::vector<float> states(n * stride), partials(n * stride);
    for (size_t from = 0; from < longest; from += kernels::kChunk) {
      std::vector<kernels::Visible> visible(n);
      for (size_t r = 0; r < n; ++r) {
        const size_t begin = std::max(from, seen[first + r].from);
        const size_t end = std::max(begin, std::min(from + kernels::kChunk, seen[first + r].to));
        visible[r] = {static_cast<uint32_t>(begin - from), static_cast<uint32_t>(end - from)};
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
          std::vector<Span> seen;
          for (size_t r = 0; r < n_queries; ++r) {
            queries.push_back(q.data() + r * d_k);
            const size_t to = r == 0 ? n_pos : 1 + source() % n_pos;
            seen.push_back({r % 2 == 0 ? 0 : source() % to, to});
          }
          const std::vector<float> out =
              attend_in_tiles(t, format, k, v, queries, seen, kernels::kMaxQueries, d_k, d_v, scale);
          bool right = true;
          for (size_t r = 0; r < n_queries; ++r) {
            const std::vector<double> truth = true_attention(queries[r], k, v, seen[r], d_k, d_v, scale);
            for (size_t d = 0; d < d_v; ++d)
              right = right && near(out[r * d_v + d], static_cast<float>(truth[d]),
                                    3e-6 * std::max(1.0, std::fabs(truth[d])));
          }
          CHECK(right);
          for (const size_t tile : {size_t{1}, size_t{5}})
            CHECK(attend_in_tiles(t, format, k, v, queries, seen, tile, d_k, d_v, scale) == out);
        }
      }
    }
  }
}

TEST("sums of weighed rows and exponentials agree with the scalar table, row by row") {
  std::mt19937 source(12);
  const Table& scalar = *kernels::table(Isa::scalar);
  for (const Table* t : all_tables()) {
    for (const size_t width : std::initializer_list<size_t>{16, 32, 80, 144}) {
      for (const size_t count : std::initializer_list<size_t>{0, 1, 27, 32, 128}) {
        const size_t n_rows = 1 + source() % 20, weight_stride = count + 3, value_stride = width + 16;
        const std::vector<float> weights = random_floats(n_rows * weight_stride, source);
        const std::vector<float> values = random_floats(count * value_stride + 1, source);
        const std::vector<float> start = random_floats(n_rows * (width + 16), source);
        std::vector<float> a = start, b = start, alone = start;
        scalar.accumulate(weights.data(), weight_stride, n_rows, values.data(), value_stride, count, a.data(),
                          width + 16, width);
        t->accumulate(weights.data(), weight_stride, n_rows, values.data(), value_stride, count, b.data(),
                      width + 16, width);
        bool right = true;
        for (size_t i = 0; i < a.size(); ++i)
          right = right && near(b[i], a[i], 1e-6 * static_cast<double>(count + 1));
        CHECK(right);
        for (size_t r = 0; r < n_rows; ++r) {
          t->accumulate(weights.data() + r * weight_stride, weight_stride, 1, values.data(), value_stride,
                        count, alone.data() + r * (width + 16), width + 16, width);
        }
        CHECK(alone == b);
      }
      std::vector<float> x = random_floats(width, source, 30), y = x;
      x[0] = y[0] = -300.0f;
      scalar.exponentials(x.data(), width, 2.5f);
      t->exponentials(y.data(), width, 2.5f);
      CHECK(near_relative(y, x, 1e-6));
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

}  // namespace

SELM_TEST_MAIN
