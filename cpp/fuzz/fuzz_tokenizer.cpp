// A vocabulary and a text made of any bytes: no crash, ids in range, and where the vocabulary has
// all bytes the text comes back.
//
// The input is the first byte (which tokenizer), then fields that end in a byte 0xFF or at the end:
// the text, then tokens (first byte: type and score, rest: text) with those of type 7 merges.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "../tests/gguf_builder.h"
#include "gguf/gguf.h"
#include "text/bpe.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using namespace selm::text;

[[noreturn]] void broken(const char* promise) {
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

constexpr const char* kPre[] = {"",       "gpt-2",  "smollm",       "llama-bpe",      "qwen2",
                                "qwen35", "tekken", "deepseek-llm", "deepseek-coder", "deepseek-v3",
                                "gpt-4o", "viking"};

struct Input {
  bool spm, whole;  // whole: all bytes are tokens, nothing is refused
  std::string pre, text;
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;
  std::vector<float> scores;
};

void add_bytes(Input& in) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string token;
    if (in.spm) {
      char hex[8];
      std::snprintf(hex, sizeof hex, "<0x%02X>", byte);
      token = hex;
    } else {
      append_utf8(code_of_byte(static_cast<uint8_t>(byte)), token);
    }
    in.tokens.push_back(token);
    in.types.push_back(in.spm ? 6 : 1);
    in.scores.push_back(0);
  }
}

Input read(std::string_view data) {
  Input in;
  const auto first = data.empty() ? uint8_t{0} : static_cast<uint8_t>(data[0]);
  in.spm = first % 2 != 0;
  in.whole = first / 2 % 4 != 0;
  in.pre = kPre[first / 8 % std::size(kPre)];
  if (in.whole) add_bytes(in);
  data.remove_prefix(data.empty() ? 0 : 1);
  for (bool text = true; !data.empty(); text = false) {
    const size_t end = std::min(data.find('\xFF'), data.size());
    const std::string_view field = data.substr(0, end);
    data.remove_prefix(std::min(end + 1, data.size()));
    if (text) {
      in.text = field;
    } else if (!field.empty()) {
      const auto head = static_cast<uint8_t>(field[0]);
      const std::string token(field.substr(1));
      if (head % 8 == 7) {
        in.merges.push_back(token);
      } else {
        in.tokens.push_back(token);
        in.types.push_back(in.whole && head % 8 == 6 ? 1 : head % 8);
        in.scores.push_back(static_cast<float>(head / 8));
      }
    }
  }
  return in;
}

std::vector<std::byte> file_of(const Input& in) {
  selm::test::GgufBuilder file;
  file.set("tokenizer.ggml.model", in.spm ? "llama" : "gpt2").set("tokenizer.ggml.pre", in.pre);
  file.set_array("tokenizer.ggml.tokens", in.tokens).set_array("tokenizer.ggml.token_type", in.types);
  file.set_array("tokenizer.ggml.scores", in.scores).set_array("tokenizer.ggml.merges", in.merges);
  file.set("tokenizer.ggml.add_space_prefix", false);
  return file.build();
}

void check(const Tokenizer& t, const Input& in, bool special) {
  const std::vector<Token> ids = t.encode(in.text, true, special);
  std::string joined;
  for (const Token id : ids) {
    if (id < 0 || static_cast<size_t>(id) >= t.size()) broken("ids are in range");
    joined += t.piece(id, true);
  }
  if (t.decode(ids, true) != joined) broken("the text is its pieces");
  Utf8Stream stream;
  std::string clean = stream.push(joined);
  clean += stream.flush();
  for (size_t at = 0; at < clean.size();) {
    const Utf8Char next = read_utf8(clean, at);
    if (!next.valid) broken("a stream gives valid UTF-8");
    at += next.length;
  }
  // With SPM, U+2581 comes back as a space; a token of the input may have any text.
  if (in.whole && !in.spm && !t.special().add_bos && joined != in.text) broken("the text comes back");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Input in = read({reinterpret_cast<const char*>(data), size});
  const std::vector<std::byte> bytes = file_of(in);
  auto file = selm::gguf::File::parse(bytes);
  if (!file.ok()) broken("the builder makes good files");
  auto tokenizer = Tokenizer::load(file.value());
  if (!tokenizer.ok()) {
    if (tokenizer.status().message().empty()) broken("a refusal says why");
    return 0;
  }
  check(tokenizer.value(), in, false);
  check(tokenizer.value(), in, true);
  return 0;
}
