// The tokens of a vocabulary: texts, types, scores, and which token has a given text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/hash_index.h"
#include "text/tokenizer.h"

namespace selm::text {

// The byte of a token written as <0x00> .. <0xFF>, else -1.
int byte_of_text(std::string_view text);

class Vocabulary {
 public:
  // Reads tokenizer.ggml.{tokens, token_type, scores}. Without types, <0xNN> are bytes (llama) and
  // the rest normal; without scores all are 0. Token strings may hold any bytes.
  static Result<Vocabulary> load(const gguf::File& file, bool spm);

  size_t size() const { return types_.size(); }
  bool has(Token id) const { return id >= 0 && static_cast<size_t>(id) < size(); }
  std::string_view text(Token id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(texts_).substr(ends_[i], ends_[i + 1] - ends_[i]);
  }
  TokenType type(Token id) const { return types_[static_cast<size_t>(id)]; }
  void set_type(Token id, TokenType type) { types_[static_cast<size_t>(id)] = type; }
  float score(Token id) const { return scores_.empty() ? 0.0f : scores_[static_cast<size_t>(id)]; }
  size_t longest() const { return longest_; }  // bytes of the longest token

  // The first token with that text, of any type, or kNoToken. Empty texts are never found.
  Token find(std::string_view text) const;
  // The same, but never a control, unknown or byte token: what a written text may become.
  Token find_plain(std::string_view text) const;

 private:
  Status read_texts(const gguf::File& file);
  Status read_types(const gguf::File& file, bool spm);
  Status read_scores(const gguf::File& file);

  std::string texts_;             // one after another
  std::vector<uint32_t> ends_;    // [size + 1], where each begins; the last is texts_.size()
  std::vector<TokenType> types_;  // [size]
  std::vector<float> scores_;     // [size] or empty
  size_t longest_ = 0;
  uint64_t seed_ = 0;
  HashIndex by_text_;
};

}  // namespace selm::text
