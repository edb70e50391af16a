// Snapshots with any contents under a right head and checksum, for tests of what comes after those.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/hash.h"

namespace selm::test {

inline constexpr size_t kSnapshotHead = 40;  // magic 8, version 4, KV type 4, model 8, size 8, tokens 8
inline constexpr size_t kSnapshotSize = 24;  // where they are in it
inline constexpr size_t kSnapshotCount = 32;

// `good` is a whole one of the same session's model.
inline std::vector<std::byte> sealed(std::span<const std::byte> good, uint64_t n_tokens,
                                     std::span<const std::byte> body) {
  std::vector<std::byte> bytes(good.begin(), good.begin() + kSnapshotHead);
  bytes.insert(bytes.end(), body.begin(), body.end());
  const uint64_t size = bytes.size() + sizeof(uint64_t);
  std::memcpy(bytes.data() + kSnapshotSize, &size, sizeof size);
  std::memcpy(bytes.data() + kSnapshotCount, &n_tokens, sizeof n_tokens);
  uint64_t hash = 0;
  for (size_t at = 0; at < bytes.size(); at += 65536)
    hash = hash64(std::span(bytes).subspan(at, std::min<size_t>(65536, bytes.size() - at)), hash);
  const auto* end = reinterpret_cast<const std::byte*>(&hash);
  bytes.insert(bytes.end(), end, end + sizeof hash);
  return bytes;
}

inline std::span<const std::byte> body_of(std::span<const std::byte> snapshot) {
  return snapshot.subspan(kSnapshotHead, snapshot.size() - kSnapshotHead - sizeof(uint64_t));
}

}  // namespace selm::test
