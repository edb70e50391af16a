// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace selm {

class Sha256 {
 public:
  void update(std::span<const std::byte> bytes);
  // The digest of all that came, in lower-case hexadecimal. Nothing may come after.
  std::string finish();

 private:
  void block(const std::byte* bytes);  // of 64

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> rest_ = {};  // what does not fill a block yet
  size_t held_ = 0;
  uint64_t length_ = 0;
};

}  // namespace selm
