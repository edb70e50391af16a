// A JSON Schema or GBNF made of any bytes, and a reply drawn from what it allows: no crash, an end in time,
// every token that is allowed can be read, and no text leads nowhere.
//
// The input's first byte: even for a schema, odd for GBNF. What follows the first byte 0xFF chooses tokens.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/gbnf.h"
#include "grammar/matcher.h"
#include "grammar/schema.h"
#include "text/tokenizer.h"
#include "tiny_tokenizer.h"

namespace {

using namespace selm;
using fuzz::broken;
using fuzz::tokenizer;

constexpr size_t kMostText = 4096, kMostTokens = 64;

std::vector<text::Token> listed(const grammar::Bits& bits) {
  std::vector<text::Token> found;
  for (size_t t = 0; t < tokenizer().size(); ++t)
    if (bits[t / 64] >> (t % 64) & 1) found.push_back(static_cast<text::Token>(t));
  return found;
}

void reply(const std::shared_ptr<const grammar::Constraint>& constraint, std::string_view choices) {
  grammar::Matcher matcher(constraint);
  for (size_t i = 0; i < choices.size() && i < kMostTokens; ++i) {
    const auto bits = matcher.allowed();
    if (!bits.ok()) return;  // too ambiguous
    const std::vector<text::Token> tokens = listed(*bits.value());
    if (tokens.empty()) broken("a vocabulary of all bytes never ends in the middle");
    const text::Token token = tokens[static_cast<uint8_t>(choices[i]) % tokens.size()];
    if (tokenizer().is_end(token)) {
      if (!matcher.complete()) broken("an end token ends a whole text");
      return;
    }
    const auto read = matcher.read(token);
    if (read.ok() && !read.value()) broken("what is allowed can be read");
    if (!read.ok()) return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t end = std::min(rest.find('\xFF'), rest.size());
  const std::string_view text = rest.substr(0, std::min(end, kMostText));
  auto made = data[0] % 2 == 0 ? grammar::json_schema(text) : grammar::gbnf(text);
  if (!made.ok()) {
    if (made.status().message().empty()) broken("a refusal says why");
    return 0;
  }
  static const auto trie = std::make_shared<const grammar::TokenTrie>(grammar::TokenTrie::of(tokenizer()));
  reply(std::make_shared<const grammar::Constraint>(std::move(made.value()), tokenizer(), trie),
        rest.substr(std::min(end + 1, rest.size())));
  return 0;
}
