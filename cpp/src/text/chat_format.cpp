#include "text/chat_format.h"

#include <algorithm>
#include <iterator>

namespace selm::text {
namespace {

using std::string_view;

bool has(string_view text, string_view part) { return text.find(part) != string_view::npos; }

// As Python's str.strip, for the white space that messages have.
string_view trimmed(string_view text) {
  constexpr string_view kSpace = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

Status unknown_family(string_view what) {
  std::string names;
  for (const char* name : kChatFamilyNames) names += (names.empty() ? "" : ", ") + std::string(name);
  return error(Code::unsupported, "%.*s; known families are %s", static_cast<int>(what.size()), what.data(),
               names.c_str());
}

// The text of a string literal '<|im_start|>system\nYou are ...<|im_end|>\n' in the template.
std::string system_literal(string_view source) {
  constexpr string_view kOpen = "<|im_start|>system", kClose = "<|im_end|>";
  for (size_t at = source.find(kOpen); at != string_view::npos; at = source.find(kOpen, at + 1)) {
    string_view rest = source.substr(at + kOpen.size());
    if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);  // as the literal spells it
    } else if (rest.starts_with('\n')) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const string_view said = rest.substr(0, rest.find(kClose));
    if (said.size() == rest.size() || said.empty()) continue;
    if (said.find_first_of("'\"{}\\\n") == string_view::npos) return std::string(said);
  }
  return {};
}

// Writes one conversation; what the families differ in.
class Writer {
 public:
  Writer(const ChatFormat& format, const Tokenizer& tokenizer) : format_(format), tokenizer_(tokenizer) {
    const SpecialTokens& special = tokenizer.special();
    if (special.bos != kNoToken) bos_ = tokenizer.text(special.bos);
    if (special.eos != kNoToken) eos_ = tokenizer.text(special.eos);
  }

  Result<std::string> write(std::span<const ChatMessage> messages, bool begin_reply) {
    if (tokenizer_.special().add_bos || begins_with_bos()) out_ += bos_;
    std::string system(format_.default_system);
    if (messages.front().role == "system") {
      if (!has_system_turns()) {
        system = harmless(messages.front());
        messages = messages.subspan(1);
      } else {
        system.clear();
      }
    }
    if (!system.empty() && has_system_turns()) turn("system", system);
    const bool alternating = !has_system_turns();
    const size_t asked = format_.family == ChatFamily::mistral3 ? (messages.size() - 1) / 2 * 2 : 0;
    for (size_t i = 0; i < messages.size(); ++i) {
      const string_view role = messages[i].role;
      if (!knows(role)) {
        return error(Code::invalid_argument, "message %zu: %s has no role '%.32s'", i,
                     kChatFamilyNames[static_cast<size_t>(format_.family)], std::string(role).c_str());
      }
      if (alternating && (role == "user") != (i % 2 == 0)) {
        return error(Code::invalid_argument,
                     "message %zu: user and assistant take turns in this model's chats, user first", i);
      }
      std::string content = harmless(messages[i]);
      if (alternating && i == asked && !system.empty()) content = with_system(system, content);
      if (alternating && i > 0 && role == "user" && format_.family == ChatFamily::llama2) out_ += bos_;
      turn(role, content);
    }
    if (alternating && messages.empty())
      return error(Code::invalid_argument, "a system prompt alone is no conversation for this model");
    if (begin_reply) {
      begin("assistant");
    } else if (format_.family == ChatFamily::phi3) {
      out_ += eos_;
    }
    return std::move(out_);
  }

 private:
  bool has_system_turns() const {
    const ChatFamily f = format_.family;
    return f == ChatFamily::chatml || f == ChatFamily::llama3 || f == ChatFamily::phi3 ||
           f == ChatFamily::zephyr;
  }
  bool begins_with_bos() const { return !has_system_turns() || format_.family == ChatFamily::llama3; }
  bool knows(string_view role) const {
    if (role == "user" || role == "assistant" || (role == "system" && has_system_turns())) return true;
    const bool any = format_.family == ChatFamily::chatml || format_.family == ChatFamily::llama3;
    const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; };
    return any && !role.empty() && role.size() <= 32 && std::all_of(role.begin(), role.end(), plain);
  }
  std::string harmless(const ChatMessage& message) const {
    if (message.role != "assistant") return tokenizer_.defused(message.content);
    string_view said = message.content;
    constexpr string_view kEnd = "</think>";
    if (const size_t at = said.rfind(kEnd); format_.drops_reasoning && at != string_view::npos) {
      said.remove_prefix(at + kEnd.size());
      said.remove_prefix(std::min(said.find_first_not_of('\n'), said.size()));
    }
    return std::string(said);
  }
  std::string with_system(const std::string& system, const std::string& question) const {
    if (format_.family == ChatFamily::llama2) return "<<SYS>>\n" + system + "\n<</SYS>>\n\n" + question;
    return system + "\n\n" + question;
  }

  void begin(string_view role) {
    switch (format_.family) {
      case ChatFamily::chatml:
        (out_ += "<|im_start|>").append(role) += '\n';
        break;
      case ChatFamily::llama3:
        (out_ += "<|start_header_id|>").append(role) += "<|end_header_id|>\n\n";
        break;
      case ChatFamily::gemma:
        (out_ += "<start_of_turn>").append(role == "assistant" ? "model" : role) += '\n';
        break;
      case ChatFamily::phi3:
      case ChatFamily::zephyr:
        (out_ += "<|").append(role) += "|>\n";
        break;
      case ChatFamily::llama2:
      case ChatFamily::mistral:
      case ChatFamily::mistral3:
        if (role == "user") out_ += "[INST] ";
        break;  // a reply goes on where the question ends
    }
  }

  void turn(string_view role, string_view content) {
    begin(role);
    const bool asks = role == "user";
    switch (format_.family) {
      case ChatFamily::chatml:
        out_.append(content) += "<|im_end|>\n";
        break;
      case ChatFamily::llama3:
        out_.append(trimmed(content)) += "<|eot_id|>";
        break;
      case ChatFamily::gemma:
        out_.append(trimmed(content)) += "<end_of_turn>\n";
        break;
      case ChatFamily::phi3:
        out_.append(content) += "<|end|>\n";
        break;
      case ChatFamily::zephyr:
        (out_.append(content) += eos_) += '\n';
        break;
      case ChatFamily::llama2:
        if (!asks) out_ += ' ';
        out_.append(trimmed(content)) += asks ? " [/INST]" : " " + eos_;
        break;
      case ChatFamily::mistral:
        out_.append(content) += asks ? " [/INST]" : eos_;
        break;
      case ChatFamily::mistral3:
        if (!asks) out_ += ' ';
        out_.append(asks ? content : trimmed(content)) += asks ? "[/INST]" : eos_;
        break;
    }
  }

  const ChatFormat& format_;
  const Tokenizer& tokenizer_;
  std::string bos_, eos_, out_;
};

}  // namespace

Result<ChatFormat> chat_format_named(string_view name) {
  const auto* found = std::find(std::begin(kChatFamilyNames), std::end(kChatFamilyNames), name);
  if (found == std::end(kChatFamilyNames)) return unknown_family("there is no such chat family");
  return ChatFormat{static_cast<ChatFamily>(found - std::begin(kChatFamilyNames)), {}, false};
}

Result<ChatFormat> chat_format_of(string_view source) {
  const auto plain = [](ChatFamily family) { return ChatFormat{family, {}, false}; };
  if (has(source, "<|im_start|>"))
    return ChatFormat{ChatFamily::chatml, system_literal(source), has(source, "</think>")};
  if (has(source, "<|start_header_id|>")) return plain(ChatFamily::llama3);
  if (has(source, "<start_of_turn>")) return plain(ChatFamily::gemma);
  if (has(source, "[INST]")) {
    // Those with turns of their own for tools or the system prompt write [INST] otherwise.
    if (has(source, "[SYSTEM_PROMPT]") || has(source, "'[INST]'"))
      return unknown_family("the file's chat template is of a newer Mistral");
    if (has(source, "<<SYS>>")) return plain(ChatFamily::llama2);
    const bool third =
        has(source, "[AVAILABLE_TOOLS]") || has(source, "'[/INST]'") || has(source, "\"[/INST]\"");
    return plain(third ? ChatFamily::mistral3 : ChatFamily::mistral);
  }
  if (has(source, "<|user|>") && has(source, "<|end|>")) return plain(ChatFamily::phi3);
  if (has(source, "<|user|>") && has(source, "eos_token")) return plain(ChatFamily::zephyr);
  return unknown_family("the file's chat template is of no known family");
}

Result<std::string> format_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                                bool begin_reply, const Tokenizer& tokenizer) {
  if (messages.empty()) return error(Code::invalid_argument, "there are no messages");
  return Writer(format, tokenizer).write(messages, begin_reply);
}

}  // namespace selm::text
