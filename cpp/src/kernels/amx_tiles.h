// The AMX instructions that amx_int8.cpp and amx_bf16.cpp use. Where SELM_EMULATE_AMX is defined they are
// plain C++, so that everything around them is tested on processors without AMX.
//
// As assembly, since GCC 12's intrinsic does not say that a configuration's 64 bytes are read.
// Intel, Architecture Instruction Set Extensions Programming Reference, chapter "AMX".
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace selm::kernels::amx {

// The operand of ldtilecfg: rows and bytes of a row of each tile.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

#if defined(SELM_EMULATE_AMX)
namespace {

// As the processor: rows and bytes beyond a tile's configuration are neither read nor written.
struct EmulatedTiles {
  TileConfig config;
  uint8_t data[8][16][64];
};
thread_local EmulatedTiles tiles;

// What the processor answers with a general protection fault.
inline void must(bool right) {
  if (!right) __builtin_trap();
}

inline void configure_tiles(const TileConfig& config) {
  must(config.palette == 1 && config.start_row == 0);
  for (const uint8_t x : config.reserved) must(x == 0);
  for (size_t t = 0; t < 16; ++t) {
    must(config.rows[t] <= (t < 8 ? 16 : 0) && config.row_bytes[t] <= (t < 8 ? 64 : 0));
    must((config.rows[t] == 0) == (config.row_bytes[t] == 0));
  }
  tiles.config = config;
  std::memset(tiles.data, 0, sizeof tiles.data);
}
inline void release_tiles() { tiles.config = TileConfig{}; }

template <int kTile>
inline void zero_tile() {
  std::memset(tiles.data[kTile], 0, sizeof tiles.data[kTile]);
}
template <int kTile>
inline void load_tile(const void* p, size_t stride) {
  zero_tile<kTile>();
  for (size_t r = 0; r < tiles.config.rows[kTile]; ++r) {
    std::memcpy(tiles.data[kTile][r], static_cast<const std::byte*>(p) + r * stride,
                tiles.config.row_bytes[kTile]);
  }
}
template <int kTile>
inline void store_tile(void* p, size_t stride) {
  for (size_t r = 0; r < tiles.config.rows[kTile]; ++r) {
    std::memcpy(static_cast<std::byte*>(p) + r * stride, tiles.data[kTile][r], tiles.config.row_bytes[kTile]);
  }
}
// Sums of rows of A by columns of B; elements of B come in dwords.
template <int kSum, int kA, int kB>
inline void check_shapes() {
  const TileConfig& c = tiles.config;
  must(c.rows[kSum] == c.rows[kA] && c.row_bytes[kA] == 4 * c.rows[kB] &&
       c.row_bytes[kSum] == c.row_bytes[kB]);
}
inline float bf16_at(const uint8_t* row, size_t i) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, row + 2 * i, 2);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
template <int kSum, int kA, int kB>
inline void multiply_bytes() {
  check_shapes<kSum, kA, kB>();
  for (size_t m = 0; m < tiles.config.rows[kSum]; ++m) {
    int32_t sum[16];
    std::memcpy(sum, tiles.data[kSum][m], sizeof sum);
    for (size_t k = 0; k < tiles.config.row_bytes[kA] / 4u; ++k) {
      for (size_t n = 0; n < tiles.config.row_bytes[kSum] / 4u; ++n) {
        for (size_t i = 0; i < 4; ++i)
          sum[n] += tiles.data[kA][m][4 * k + i] * static_cast<int8_t>(tiles.data[kB][k][4 * n + i]);
      }
    }
    std::memcpy(tiles.data[kSum][m], sum, sizeof sum);
  }
}
template <int kSum, int kA, int kB>
inline void multiply_bf16() {
  check_shapes<kSum, kA, kB>();
  for (size_t m = 0; m < tiles.config.rows[kSum]; ++m) {
    float sum[16];
    std::memcpy(sum, tiles.data[kSum][m], sizeof sum);
    for (size_t k = 0; k < tiles.config.row_bytes[kA] / 4u; ++k) {
      for (size_t n = 0; n < tiles.config.row_bytes[kSum] / 4u; ++n) {
        for (size_t i = 0; i < 2; ++i)
          sum[n] += bf16_at(tiles.data[kA][m], 2 * k + i) * bf16_at(tiles.data[kB][k], 2 * n + i);
      }
    }
    std::memcpy(tiles.data[kSum][m], sum, sizeof sum);
  }
}

}  // namespace
#elif defined(__x86_64__)
namespace {

inline void configure_tiles(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }
inline void release_tiles() { __asm__ volatile("tilerelease"); }

template <int kTile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// Rows of the tile's bytes, `stride` apart.
template <int kTile>
inline void load_tile(const void* p, size_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* p, size_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}
// sum[m][n] += over k of a[m][k] * b[k / 4][n][k % 4], a unsigned, b signed.
template <int kSum, int kA, int kB>
inline void multiply_bytes() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}
// sum[m][n] += over k of a[m][k] * b[k / 2][n][k % 2], pairs of bf16 in float, k ascending.
template <int kSum, int kA, int kB>
inline void multiply_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace
#endif

namespace {

constexpr size_t kTile = 16;  // rows of a tile, of 64 bytes each

// Tiles 0 to 3 are sums (columns 0-15 by rows 0-15, the same by rows 16-31, columns 16-31 likewise),
// 4 and 5 activations of 16 columns, 6 and 7 weights of 16 rows. Released at the end of the scope,
// as loaded tiles make every switch of threads dearer.
class Tiles {
 public:
  Tiles() = default;
  ~Tiles() { release_tiles(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // For 1 to 32 columns. Does nothing if they are as many as before.
  void set_columns(size_t n) {
    if (n == columns_) return;
    columns_ = n;
    TileConfig config;
    const auto first = static_cast<uint8_t>(n < kTile ? n : kTile);
    const auto second = static_cast<uint8_t>(n > kTile ? n - kTile : 1);
    const uint8_t rows[8] = {first, first, second, second, first, second, kTile, kTile};
    for (size_t t = 0; t < 8; ++t) {
      config.rows[t] = rows[t];
      config.row_bytes[t] = 64;
    }
    configure_tiles(config);
  }

 private:
  size_t columns_ = 0;
};

}  // namespace
}  // namespace selm::kernels::amx
