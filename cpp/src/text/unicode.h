// What the tokenizers need of Unicode: reading UTF-8 and the class of a code point.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace selm::text {

// General categories, as far as the pre-tokenizers tell them apart. `space` is White_Space.
enum class CharClass : uint8_t {
  other,  // control, format, unassigned
  space,
  upper,     // Lu
  lower,     // Ll
  title,     // Lt
  modifier,  // Lm
  letter,    // Lo
  mark,
  number,
  punctuation,
  symbol,
  cased_pairs,  // only in the table: upper, lower, upper, lower ...
};

// unicode_tables.cpp, made by generate_unicode.py.
extern const uint32_t kClassRanges[];
extern const size_t kClassRangeCount;

CharClass class_of(uint32_t code);

constexpr uint32_t kReplacement = 0xFFFD;

// One step of a UTF-8 text.
struct Utf8Char {
  uint32_t code;    // U+FFFD unless valid
  uint8_t length;   // bytes; of an invalid sequence, the longest prefix of a valid one (at least 1)
  bool valid;       // no overlong forms, surrogates or codes above 10FFFF
  bool incomplete;  // not valid, but more bytes after the end of the text could make it so
};
Utf8Char read_utf8(std::string_view text, size_t offset);  // offset < text.size()

void append_utf8(uint32_t code, std::string& out);

}  // namespace selm::text
