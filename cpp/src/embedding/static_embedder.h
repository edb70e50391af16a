// Vectors of texts without a network: each token has a row, a text is the sum of its tokens' rows
// scaled to length 1.
//
// The file is GGUF: general.architecture = selm-embedder, selm-embedder.embedding_length,
// selm-embedder.max_word_characters (100 where it is missing), a vocabulary of WordPieces
// (tokenizer.ggml.model = bert) and the one tensor token_embd.weight [tokens, embedding_length].
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "gguf/gguf.h"
#include "quant/types.h"
#include "text/wordpiece.h"

namespace selm::embedding {

// After open() nothing changes: any number of threads may embed with one.
class StaticEmbedder {
 public:
  static constexpr const char* kArchitecture = "selm-embedder";

  // Maps the file; rows are read where they lie. Errors: io; format and unsupported with the key or
  // tensor, and "at byte N" where there is such a place.
  static Result<StaticEmbedder> open(const std::string& path);
  // The same for a file that is open already.
  static Result<StaticEmbedder> load(gguf::File file);

  size_t dimension() const { return dimension_; }
  const text::WordPiece& tokenizer() const { return tokenizer_; }

  // Writes [dimension()], of length 1, the same bits on every run. False, and zeros, where the text has
  // no vector: none of its tokens is known, or their rows cancel out. Takes the memory of one word and
  // one row, however long the text. Error: rows hold numbers that are not finite.
  Result<bool> embed(std::string_view text, std::span<float> vector) const;

 private:
  StaticEmbedder(gguf::File file, text::WordPiece tokenizer)
      : file_(std::move(file)), tokenizer_(std::move(tokenizer)) {}

  gguf::File file_;
  text::WordPiece tokenizer_;
  const std::byte* rows_ = nullptr;  // in file_
  quant::Type type_ = quant::Type::f32;
  size_t dimension_ = 0;
  size_t row_bytes_ = 0;
};

}  // namespace selm::embedding
