// A conversation of any bytes, in the form of a family or of a template of any bytes: a status, or a text in
// which nobody but the assistant can write a control token.
//
// The input: a byte for the family, one for how the conversation ends, then fields that end in a byte 0xFF or
// at the end: the template, then role and content by turns. Roles of one byte stand for the usual ones.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_format.h"
#include "text/tokenizer.h"
#include "tiny_tokenizer.h"

namespace {

using namespace selm;
using fuzz::broken;
using fuzz::tokenizer;

size_t control_tokens(const std::string& written) {
  size_t count = 0;
  for (const text::Token id : tokenizer().encode(written, false, true))
    count += tokenizer().type(id) == text::TokenType::control;
  return count;
}

std::vector<std::string_view> fields(std::string_view rest) {
  std::vector<std::string_view> found;
  while (true) {
    const size_t end = rest.find('\xFF');
    found.push_back(rest.substr(0, end));
    if (end == std::string_view::npos) return found;
    rest.remove_prefix(end + 1);
  }
}

std::string_view role(std::string_view field) {
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  if (field.size() != 1) return field;
  return kRoles[static_cast<unsigned char>(field[0]) % std::size(kRoles)];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const auto found = fields({reinterpret_cast<const char*>(data) + 2, size - 2});
  const size_t family = data[0] % (std::size(text::kChatFamilyNames) + 1);
  const auto format = family < std::size(text::kChatFamilyNames)
                          ? text::chat_format_named(text::kChatFamilyNames[family])
                          : text::chat_format_of(found[0]);
  if (!format.ok()) return 0;
  std::vector<text::ChatMessage> messages, harmless;
  for (size_t i = 1; i + 1 < found.size(); i += 2) {
    const bool own = role(found[i]) == "assistant";
    messages.push_back({role(found[i]), found[i + 1]});
    harmless.push_back({role(found[i]), own ? found[i + 1] : "x"});
  }
  const auto written = format_chat(format.value(), messages, data[1] % 2 == 0, tokenizer());
  const auto plain = format_chat(format.value(), harmless, data[1] % 2 == 0, tokenizer());
  if (written.ok() != plain.ok()) broken("what is said decides about no status");
  if (!written.ok()) return 0;
  if (control_tokens(written.value()) != control_tokens(plain.value()))
    broken("what is said makes no control token");
  return 0;
}
