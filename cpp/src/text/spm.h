// SentencePiece's BPE as in tokenizer.ggml.model = llama: the pair of neighbours whose joined text
// is the token with the highest score is merged first.
// Kudo and Richardson 2018, "SentencePiece"; the order of merges: its bpe_model.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace selm::text {

class Spm {
 public:
  explicit Spm(const Vocabulary& vocabulary);

  // Appends the tokens of a text, in which spaces are already U+2581; O(n log n) for tokens of
  // bounded length. A character that is no token becomes its bytes' tokens <0xNN>; without those,
  // `unknown`, or nothing where that is kNoToken.
  void encode(const Vocabulary& vocabulary, std::string_view text, Token unknown,
              std::vector<Token>& out) const;

 private:
  Token byte_tokens_[256];
};

// " " -> "\u2581" and back; a written U+2581 becomes a space too.
std::string escape_spaces(std::string_view text);
std::string unescape_spaces(std::string_view text);

}  // namespace selm::text
