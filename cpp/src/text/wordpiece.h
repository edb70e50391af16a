// Text to tokens as BERT's uncased models cut it: words by the rules of `tokenizers`' BertNormalizer
// and BertPreTokenizer, then of each word the longest token of the vocabulary, again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/bert_folds.h"
#include "text/hash_index.h"
#include "text/vocabulary.h"

namespace selm::gguf {
class File;
}

namespace selm::text {

// The words of a text, one after another: small letters without accents; punctuation marks and
// Chinese characters alone. Holds one word, however long the text. Bytes that are no UTF-8 count as
// U+FFFD, which is left out like control characters.
class BertWords {
 public:
  // The text outlives it. most: characters (code points, folded) that a word may have.
  BertWords(std::string_view text, size_t most) : text_(text), most_(most) {}

  bool next();                                     // to the first or next word; false at the end
  std::string_view word() const { return word_; }  // UTF-8, until next(); of a longer one its beginning
  bool too_long() const { return characters_ > most_; }

 private:
  struct Mark {
    int32_t order;
    uint32_t code;
  };

  void append(uint32_t code);
  void append_fold(uint32_t code);  // text or a mark that stays
  void hold(Mark mark);
  void end_run();

  std::string_view text_;
  size_t most_;
  size_t at_ = 0;
  std::string word_;
  size_t characters_ = 0;
  std::vector<Mark> run_;  // marks that stand together, not in their order yet
};

class WordPiece {
 public:
  // tokenizer.ggml.model must be `bert`; tokens as in a vocab.txt: "##ing" goes on a word. Copies what
  // it needs of the file. most: characters of a word; longer ones are unknown as a whole.
  static Result<WordPiece> load(const gguf::File& file, size_t most);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  Token unknown() const { return unknown_; }  // or kNoToken
  BertWords words(std::string_view text) const { return BertWords(text, most_); }

  // Appends the tokens of one word, or unknown() where it cannot be put together. Control tokens are
  // never made from text.
  void encode(const BertWords& word, std::vector<Token>& out) const;
  // All of a text, without [CLS] and [SEP].
  std::vector<Token> encode(std::string_view text) const;

 private:
  Token longest(std::string_view rest, bool first, size_t* length) const;
  Token find_continuation(std::string_view piece) const;

  Vocabulary vocabulary_;
  Token unknown_ = kNoToken;
  size_t most_ = 0;
  uint64_t seed_ = 0;
  HashIndex continuations_;  // tokens that begin with ##, by what follows
};

}  // namespace selm::text
