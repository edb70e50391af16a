// From messages to the text that a chat model was trained to continue, for the families that most files
// belong to. A file's template (`tokenizer.chat_template`, Jinja) is a stranger's program: it is recognised
// by what it writes, never run. Templates with dates, tools or reasoning of their own come out in their plain
// form. Formats as their makers' model cards give them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "text/tokenizer.h"

namespace selm::text {

enum class ChatFamily { chatml, llama2, llama3, gemma, mistral, mistral3, phi3, zephyr };
inline constexpr const char* kChatFamilyNames[] = {"chatml",  "llama2",   "llama3", "gemma",
                                                   "mistral", "mistral3", "phi3",   "zephyr"};

struct ChatFormat {
  ChatFamily family = ChatFamily::chatml;
  std::string default_system;    // said where the messages bring none (Qwen 2.5); "" for none
  bool drops_reasoning = false;  // answers are read again without what stands before </think> (Qwen 3)
};

// Errors: unsupported, with the families there are.
Result<ChatFormat> chat_format_named(std::string_view name);
// Which a template is of. Errors: unsupported.
Result<ChatFormat> chat_format_of(std::string_view chat_template);

struct ChatMessage {
  std::string_view role;  // "system", "user", "assistant"; chatml and llama3 take others
  std::string_view content;
};

// To be encoded with parse_special and without add_special: the token that begins a text is written out.
// Control tokens in what others than the assistant say are made harmless (Tokenizer::defused). A system
// prompt goes before the first question where the family has none. Errors: invalid_argument (no messages, a
// role that the family does not know, turns that do not alternate where they must).
Result<std::string> format_chat(const ChatFormat& format, std::span<const ChatMessage> messages,
                                bool begin_reply, const Tokenizer& tokenizer);

}  // namespace selm::text
