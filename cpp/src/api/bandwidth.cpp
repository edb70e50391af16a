#include "api/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>

#if defined(__unix__)
#include <unistd.h>
#endif

#include "base/memory.h"
#include "base/thread_pool.h"

namespace selm::api {
namespace {

constexpr size_t kLeast = size_t{256} << 20, kMost = size_t{1} << 30;
constexpr size_t kPiece = size_t{1} << 20;
constexpr int kPasses = 6;

// Twice the last cache, so that little of it is found there in the next pass.
size_t bytes_to_read() {
  long cache = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  const size_t wanted = cache > 0 ? 2 * static_cast<size_t>(cache) : 0;
  return std::clamp(wanted, kLeast, kMost) / kPiece * kPiece;
}

// Eight independent sums, so that the loop waits for memory and not for additions.
uint64_t read_all(const uint64_t* words, size_t n) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; ++j) sums[j] ^= words[i + j];
  }
  uint64_t total = 0;
  for (const uint64_t s : sums) total ^= s;
  return total;
}

}  // namespace

Result<double> measure_bandwidth(unsigned threads) {
  const size_t bytes = bytes_to_read();
  auto buffer = AlignedBuffer::make(bytes);
  if (!buffer) return error(Code::out_of_memory, "no memory for a buffer of %zu MB", bytes >> 20);
  std::memset(buffer->data(), 1, bytes);
  ThreadPool pool(threads);
  double best = 0.0;
  std::atomic<uint64_t> sink{0};
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(bytes / kPiece, [&](size_t piece, unsigned) {
      const auto* words = reinterpret_cast<const uint64_t*>(buffer->data() + piece * kPiece);
      sink.fetch_xor(read_all(words, kPiece / sizeof(uint64_t)), std::memory_order_relaxed);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(bytes) / took.count() / 1e9);
  }
  return best;
}

}  // namespace selm::api
