// Small vocabularies for the tests of the tokenizers, and checks of what they give.
#pragma once

#include <cstdint>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "gguf/gguf.h"
#include "gguf_builder.h"
#include "text/bpe.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace selm::test {

using namespace selm::text;
using Ids = std::vector<Token>;

inline constexpr int kNormal = 1, kUnknown = 2, kControl = 3, kUser = 4, kByte = 6;

inline std::string encoded_byte(int byte) {
  std::string text;
  append_utf8(code_of_byte(static_cast<uint8_t>(byte)), text);
  return text;
}

// "a b" as byte-level vocabularies write it.
inline std::string encoded(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) text += encoded_byte(static_cast<uint8_t>(byte));
  return text;
}

struct Vocab {
  std::string model = "gpt2", pre = "gpt-2";
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  std::vector<std::string> merges;

  Token add(const std::string& text, int type = kNormal, float score = 0) {
    tokens.push_back(text);
    types.push_back(type);
    scores.push_back(score);
    return static_cast<Token>(tokens.size() - 1);
  }
  Token merge(const std::string& left, const std::string& right) {
    merges.push_back(encoded(left) + " " + encoded(right));
    return add(encoded(left + right));
  }
  GgufBuilder builder() const {
    GgufBuilder file;
    file.set("tokenizer.ggml.model", model);
    if (!pre.empty()) file.set("tokenizer.ggml.pre", pre);
    file.set_array("tokenizer.ggml.tokens", tokens);
    file.set_array("tokenizer.ggml.token_type", types);
    if (model == "llama") file.set_array("tokenizer.ggml.scores", scores);
    if (model == "gpt2") file.set_array("tokenizer.ggml.merges", merges);
    return file;
  }
};

// All 256 bytes as tokens 0 to 255.
inline Vocab bytes_vocab(const std::string& pre = "gpt-2") {
  Vocab v;
  v.pre = pre;
  for (int byte = 0; byte < 256; ++byte) v.add(encoded_byte(byte));
  return v;
}

// <unk> <s> </s> and the 256 bytes as tokens 3 to 258.
inline Vocab spm_vocab() {
  Vocab v;
  v.model = "llama";
  v.pre = "default";
  v.add("<unk>", kUnknown);
  v.add("<s>", kControl);
  v.add("</s>", kControl);
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", byte);
    v.add(text, kByte);
  }
  return v;
}

inline Result<Tokenizer> load(const GgufBuilder& builder) {
  const std::vector<std::byte> bytes = builder.build();
  auto file = selm::gguf::File::parse(bytes);
  if (!file.ok()) return file.status();
  return Tokenizer::load(file.value());  // the bytes go away: the tokenizer keeps copies
}
inline Result<Tokenizer> load(const Vocab& vocab) { return load(vocab.builder()); }

inline std::string show(const Ids& ids) {
  std::ostringstream out;
  for (const Token id : ids) out << id << ' ';
  return out.str();
}

inline void check_ids(const char* file, int line, const Ids& got, const Ids& expected) {
  if (got != expected) fail(file, line, "ids " + show(got) + "instead of " + show(expected));
}
#define CHECK_IDS(got, ...) ::selm::test::check_ids(__FILE__, __LINE__, got, ::selm::test::Ids __VA_ARGS__)

inline void check_error(const char* file, int line, const Status& status, Code code, const char* part) {
  if (status.code() != code || status.message().find(part) == std::string::npos) {
    fail(file, line, "error " + std::to_string(static_cast<int>(status.code())) + ": " + status.message());
  }
}
#define CHECK_ERROR(result, code, part) \
  ::selm::test::check_error(__FILE__, __LINE__, (result).status(), code, part)

}  // namespace selm::test
