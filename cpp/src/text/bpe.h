// Byte-level byte-pair encoding: GPT-2's, as in tokenizer.ggml.model = gpt2.
// Sennrich et al. 2016, "Neural machine translation of rare words with subword units"; the bytes as
// printable characters: Radford et al. 2019 (GPT-2), encoder.py.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/hash_index.h"
#include "text/pretokenizer.h"
#include "text/vocabulary.h"

namespace selm::text {

// The printable character that stands for a byte in token texts, and back (-1: for none).
uint32_t code_of_byte(uint8_t byte);
int byte_of_code(uint32_t code);
// The bytes that a token text stands for. What stands for no byte is kept as it is.
std::string bytes_of_text(std::string_view text);

class Bpe {
 public:
  // Reads tokenizer.ggml.merges. A merge whose parts or result are no tokens still takes part, as
  // long as a later merge makes a token of it; what is none in the end falls back to bytes.
  static Result<Bpe> load(const gguf::File& file, const Vocabulary& vocabulary, const PreTokenizer& rules);

  // Appends the tokens of a text without special tokens; O(n log n). Bytes that the vocabulary
  // has no token for become `unknown`, or nothing where that is kNoToken.
  void encode(const Vocabulary& vocabulary, std::string_view text, Token unknown,
              std::vector<Token>& out) const;

 private:
  // A symbol is a token, or (from vocabulary.size() on) a text that is no token.
  struct Merge {
    Token left, right, result;
  };
  struct Symbol {
    Token id;  // kNoToken once merged into the one before
    uint32_t previous, next;
  };
  struct Scratch {  // kept from word to word
    std::vector<Symbol> symbols;
    std::vector<uint64_t> queue;
    std::string text;
  };

  static constexpr uint32_t kEnd = UINT32_MAX;

  uint64_t hash_pair(Token left, Token right) const {
    return mix(seed_ ^
               (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right)));
  }
  uint32_t rank(Token left, Token right) const;  // HashIndex::kNone: no such merge
  bool whole_word(const Vocabulary& vocabulary, std::string_view word, Scratch& scratch,
                  std::vector<Token>& out) const;
  void merge_word(std::string_view word, Scratch& scratch) const;
  void offer(uint32_t left, Scratch& scratch) const;
  void emit(const Vocabulary& vocabulary, Token symbol, Token unknown, std::vector<Token>& out) const;

  const PreTokenizer* rules_ = nullptr;
  std::vector<Merge> merges_;  // by rank
  HashIndex by_pair_;
  uint64_t seed_ = 0;
  Token byte_symbols_[256] = {};
  std::vector<std::string> others_;  // texts that are no tokens
};

}  // namespace selm::text
