// How a byte-level BPE cuts text into words before it merges: `tokenizer.ggml.pre`.
// Each model's tokenizer.json states its cut as one or more regular expressions, applied one after
// another to the pieces left by the one before; here each is a hand-written matcher.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace selm::text {

struct Char {
  uint32_t code;
  CharClass type;
  uint32_t offset;  // of its first byte in the text
};

// A piece of the text. Nothing matches beyond its end, not even a negated class.
class Piece {
 public:
  explicit Piece(std::span<const Char> chars) : chars_(chars) {}

  size_t size() const { return chars_.size(); }
  bool has(size_t i) const { return i < chars_.size(); }
  bool is(size_t i, uint32_t code) const { return has(i) && chars_[i].code == code; }
  bool is(size_t i, CharClass type) const { return has(i) && chars_[i].type == type; }
  bool in(size_t i, uint32_t first, uint32_t last) const {
    return has(i) && chars_[i].code >= first && chars_[i].code <= last;
  }
  uint32_t code(size_t i) const { return chars_[i].code; }

  bool letter(size_t i) const {
    return has(i) && chars_[i].type >= CharClass::upper && chars_[i].type <= CharClass::letter;
  }
  bool mark(size_t i) const { return is(i, CharClass::mark); }
  bool number(size_t i) const { return is(i, CharClass::number); }
  bool space(size_t i) const { return is(i, CharClass::space); }
  bool newline(size_t i) const { return is(i, '\r') || is(i, '\n'); }

 private:
  std::span<const Char> chars_;
};

// Where the match beginning at `at` ends, or `at` if there is none.
using Matcher = size_t (*)(const Piece& piece, size_t at);

struct PreTokenizer {
  std::string_view name;
  Matcher stages[6];   // up to the first null
  bool ignore_merges;  // a word that is a token needs no merges
  bool add_bos;        // where the file does not say
};

// nullptr: not known. "" (a file without the key) is the same as "default".
const PreTokenizer* find_pretokenizer(std::string_view name);

// Ends of the words of `text` in bytes, ascending, the last one text.size(); empty for "".
// Invalid UTF-8 counts as U+FFFD, byte by byte. Needs text.size() < 2^32.
std::vector<uint32_t> split_words(const PreTokenizer& rules, std::string_view text);

}  // namespace selm::text
