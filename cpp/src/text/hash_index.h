// An index of things kept elsewhere: open addressing over 32-bit positions.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace selm::text {

constexpr uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint64_t hash_bytes(std::string_view bytes, uint64_t seed) {
  uint64_t hash = seed ^ bytes.size();
  const char* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; left -= 8, at += 8) {
    uint64_t word;
    std::memcpy(&word, at, 8);
    hash = mix(hash ^ word);
  }
  uint64_t word = 0;
  if (left > 0) std::memcpy(&word, at, left);
  return mix(hash ^ word);
}

// A number that the writer of a file cannot know, so that no file can be made whose keys all
// collide. Results never depend on it.
uint64_t hash_seed();

// Positions by hash; the caller compares the keys. At most half full.
class HashIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  explicit HashIndex(size_t keys = 0)
      : slots_(std::bit_ceil(keys < 4 ? size_t{8} : keys + keys), kNone), mask_(slots_.size() - 1) {}

  // The first position with that hash for which equal(position) holds, or kNone.
  template <class Equal>
  uint32_t find(uint64_t hash, Equal equal) const {
    for (auto i = static_cast<size_t>(hash & mask_);; i = (i + 1) & mask_) {
      if (slots_[i] == kNone || equal(slots_[i])) return slots_[i];
    }
  }

  // Adds a position unless an equal key is there already; returns the one that stays.
  template <class Equal>
  uint32_t insert(uint64_t hash, uint32_t position, Equal equal) {
    for (auto i = static_cast<size_t>(hash & mask_);; i = (i + 1) & mask_) {
      if (slots_[i] == kNone) return slots_[i] = position;
      if (equal(slots_[i])) return slots_[i];
    }
  }

 private:
  std::vector<uint32_t> slots_;
  size_t mask_;
};

}  // namespace selm::text
