// What fuzz targets of texts share: a small vocabulary, and how a broken promise is told.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "../tests/tiny_model.h"
#include "gguf/gguf.h"
#include "text/tokenizer.h"

namespace selm::fuzz {

[[noreturn]] inline void broken(const char* promise) {
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

// All bytes, a few words, an end token.
inline const text::Tokenizer& tokenizer() {
  static const text::Tokenizer made = [] {
    test::GgufBuilder file;
    test::add_vocabulary(file);
    const std::vector<std::byte> bytes = file.build();
    static std::vector<uint64_t> words((bytes.size() + 7) / 8);
    std::memcpy(words.data(), bytes.data(), bytes.size());
    auto opened = gguf::File::parse({reinterpret_cast<const std::byte*>(words.data()), bytes.size()});
    if (!opened.ok()) broken("the vocabulary is a file");
    auto loaded = text::Tokenizer::load(opened.value());
    if (!loaded.ok()) broken("the vocabulary is read");
    return std::move(loaded.value());
  }();
  return made;
}

}  // namespace selm::fuzz
