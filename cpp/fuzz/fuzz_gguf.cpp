// Any bytes as a GGUF file: refused with a message, or everything it promises can be read.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "gguf/gguf.h"

namespace {

[[noreturn]] void broken(const char* promise) {
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

uint64_t touch(const selm::gguf::File& file) {
  uint64_t sum = 0;
  for (const selm::gguf::Entry& e : file.entries()) {
    for (uint64_t i = 0; i < e.count; ++i) {
      sum += file.uint_at(e, i) + (file.float_at(e, i) > 0 ? 1 : 0);
      for (const char c : file.string(e, i)) sum += static_cast<unsigned char>(c);
    }
    if (file.find(e.key) != &e) broken("a key is found");
    sum += file.get_uint(e.key).ok() + file.get_int(e.key).ok() + file.get_float(e.key).ok() +
           file.get_bool(e.key).ok() + file.get_string(e.key).ok();
  }
  for (const selm::gguf::Tensor& t : file.tensors()) {
    if (file.find_tensor(t.name) != &t) broken("a tensor is found");
    for (uint64_t i = 0; i < t.size; ++i) sum += std::to_integer<uint64_t>(t.data[i]);
  }
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of its own size: aligned, and its ends guarded by the sanitizer.
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  const std::vector<std::byte> bytes(input.begin(), input.end());
  selm::Result<selm::gguf::File> file = selm::gguf::File::parse(bytes);
  if (file.ok()) {
    volatile uint64_t sink = touch(file.value());
    (void)sink;
  } else if (!file.status().message().starts_with("at byte ")) {
    broken("a refusal names the byte");
  }
  return 0;
}
