// Text to token ids and back, from the vocabulary inside a GGUF file.
// SPM (`tokenizer.ggml.model = llama`) and byte-level BPE (`gpt2`).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace selm::gguf {
class File;
}

namespace selm::text {

using Token = int32_t;
inline constexpr Token kNoToken = -1;

// tokenizer.ggml.token_type
enum class TokenType : int32_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

struct SpecialTokens {
  Token bos = kNoToken, eos = kNoToken, eot = kNoToken, eom = kNoToken, unknown = kNoToken,
        padding = kNoToken, separator = kNoToken;
  bool add_bos = false, add_eos = false, add_space_prefix = false;
};

class Tokenizer {
 public:
  // Owns copies of what it needs; the file may be closed afterwards. Errors: format (arrays of
  // other types or lengths, ids out of range), unsupported (unknown model or pre-tokenizer, by name).
  static Result<Tokenizer> load(const gguf::File& file);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // add_special: BOS/EOS as the file asks. parse_special: control tokens written in the text
  // ("<|im_start|>") become their ids; otherwise they are plain text (user-defined tokens always match).
  // Invalid UTF-8 bytes are read as U+FFFD in BPE's pre-tokenizer sense but keep their bytes
  // where the vocabulary can express them. Text is not normalised (no NFC), except that SPM writes
  // a space before it and after each special token, and Phi-3 drops white space after those.
  // Of a special text inside another the leftmost counts, then the longest.
  std::vector<Token> encode(std::string_view text, bool add_special, bool parse_special) const;

  // Text of a stranger in which encode finds no control token: a zero-width space follows the first character
  // of each that is written in it.
  std::string defused(std::string_view text) const;

  // The bytes of one token, raw (may be part of a UTF-8 sequence). Control tokens give "" unless
  // `special`. Ids out of range give "".
  std::string piece(Token id, bool special) const;
  // The whole text; SPM's first added space is removed. Bytes as they are; see Utf8Stream.
  std::string decode(std::span<const Token> ids, bool special) const;

  size_t size() const;
  std::string_view text(Token id) const;  // as the file writes it ("Ġhello", "▁hello")
  // As the file gives it, except that unmistakable end tokens (<|im_end|>) are always control.
  TokenType type(Token id) const;
  bool is_end(Token id) const;  // end of generation: eos, eot, eom and their well-known spellings
  const SpecialTokens& special() const;
  std::string_view model() const;  // "llama" or "gpt2"
  // What the file says. "" in a gpt2 file: it names no pre-tokenizer, and text is cut by
  // llama.cpp's default, which may not be what the model learned; worth a warning.
  std::string_view pre() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Joins pieces into valid UTF-8: holds back an incomplete sequence, turns bytes that can never
// become valid into U+FFFD.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  // what is certain now
  std::string flush();                       // what is left, at the end

 private:
  std::string held_;
};

}  // namespace selm::text
