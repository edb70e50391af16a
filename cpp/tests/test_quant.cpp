// Sizes of blocks, finite checks, and values worked out by hand. (Bit equality with the gguf
// package on random bytes is tested from Python, through selm_dequantize.)
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "blocks.h"
#include "check.h"
#include "quant/dequantize.h"
#include "quant/unpack.h"

namespace {

using namespace selm;
using quant::Type;

std::vector<float> dequantized(Type type, const std::vector<std::byte>& row, size_t n) {
  std::vector<float> out(n);
  quant::dequantize_row(type, row.data(), out.data(), n);
  return out;
}

TEST("every type has one way to unpack, and sizes that agree with it") {
  for (const Type type : test::kAllTypes) {
    const quant::TypeInfo& info = quant::info(type);
    CHECK((quant::unpack32(type) != nullptr) == (info.block_size == 32));
    CHECK((quant::unpack256(type) != nullptr) == (info.block_size == 256));
    CHECK(quant::row_bytes(type, 512) == 512 / info.block_size * info.block_bytes);
  }
}

TEST("Q4_0 and Q8_0 by hand") {
  std::vector<std::byte> row(18);
  test::put_u16(row.data(), quant::f32_to_f16(0.5f));
  for (size_t i = 0; i < 16; ++i) row[2 + i] = static_cast<std::byte>(i | (15 - i) << 4);
  const std::vector<float> x = dequantized(Type::q4_0, row, 32);
  for (size_t i = 0; i < 16; ++i) {
    CHECK(x[i] == 0.5f * (static_cast<float>(i) - 8));
    CHECK(x[16 + i] == 0.5f * (7 - static_cast<float>(i)));
  }
  row.assign(34, std::byte{0x80});
  test::put_u16(row.data(), quant::f32_to_f16(-2.0f));
  for (const float y : dequantized(Type::q8_0, row, 32)) CHECK(y == 256.0f);
}

TEST("Q4_K by hand: scales, minima and nibbles in their places") {
  std::vector<std::byte> row(144);
  test::put_u16(row.data(), quant::f32_to_f16(1.0f));
  test::put_u16(row.data() + 2, quant::f32_to_f16(1.0f));
  // Scale of group 5: 4 low bits in byte 9, 2 high bits in byte 1; its minimum beside them.
  row[4 + 9] = std::byte{0x7a};  // scale low 10, min low 7
  row[4 + 1] = std::byte{0x80};  // scale high 2
  row[4 + 5] = std::byte{0x40};  // min high 1
  for (size_t i = 0; i < 32; ++i)
    row[16 + 64 + i] = static_cast<std::byte>(i % 16 << 4);  // groups 4 (low), 5
  const std::vector<float> x = dequantized(Type::q4_k, row, 256);
  for (size_t i = 0; i < 32; ++i) CHECK(x[160 + i] == 42.0f * static_cast<float>(i % 16) - 23.0f);
  for (size_t i = 0; i < 32; ++i) CHECK(x[128 + i] == 0.0f);
}

TEST("random rows are finite and each part of a row stands alone") {
  std::mt19937 source(1);
  for (const Type type : test::kAllTypes) {
    const std::vector<std::byte> row = test::random_row(type, 1024, source);
    CHECK(quant::row_is_finite(type, row.data(), 1024));
    const std::vector<float> all = dequantized(type, row, 1024);
    std::vector<float> part(512);
    quant::dequantize_row(type, row.data() + quant::row_bytes(type, 512), part.data(), 512);
    CHECK(std::memcmp(part.data(), all.data() + 512, 512 * sizeof(float)) == 0);
    bool finite = true;
    for (const float x : all) finite = finite && std::isfinite(x);
    CHECK(finite);
    quant::dequantize_row(type, row.data(), nullptr, 0);  // nothing asked, nothing touched
    CHECK(quant::row_is_finite(type, nullptr, 0));
  }
}

TEST("an infinite or NaN scale anywhere in a row is seen") {
  std::mt19937 source(2);
  for (const Type type : test::kAllTypes) {
    const quant::TypeInfo& info = quant::info(type);
    const test::ScaleOffsets at = test::scale_offsets(type);
    for (const uint16_t bad : std::initializer_list<uint16_t>{0x7c00, 0xfc00, 0x7e00, 0x7c01}) {
      for (const uint8_t offset : {at.first, at.second}) {
        if (offset == 0xff) continue;
        std::vector<std::byte> row = test::random_row(type, 768, source);
        std::byte* last = row.data() + row.size() - info.block_bytes;
        if (type == Type::f32) {
          const float x = bad == 0x7c00 ? std::numeric_limits<float>::infinity() : std::nanf("");
          std::memcpy(last, &x, sizeof x);
        } else {
          test::put_u16(last + offset, type == Type::bf16 ? static_cast<uint16_t>(bad | 0x7f80) : bad);
        }
        CHECK(!quant::row_is_finite(type, row.data(), 768));
      }
    }
  }
}

}  // namespace

SELM_TEST_MAIN
