// The C API's tokenizers and conversations.
#include <string>
#include <string_view>
#include <vector>

#include "api/handles.h"
#include "api/options.h"
#include "api/report.h"
#include "gguf/gguf.h"
#include "text/chat_format.h"

using selm::Code;
using selm::Result;
using selm::api::copy_out;
using selm::api::invalid;
using selm::api::read_options;
using selm::api::report;
using selm::api::write_struct;

namespace {

Result<selm::text::ChatFormat> chat_format(const selm_model& model, const char* family) {
  if (family != nullptr) return selm::text::chat_format_named(family);
  SELM_ASSIGN(const auto source, model.model->file().get_string("tokenizer.chat_template"));
  if (!source)
    return selm::error(Code::unsupported, "the file has no chat template; name a family (\"chatml\", ...)");
  return selm::text::chat_format_of(*source);
}

}  // namespace

selm_status selm_tokenizer_open(const char* path, selm_tokenizer** tokenizer) {
  if (path == nullptr || tokenizer == nullptr) return invalid("path and tokenizer must not be NULL");
  *tokenizer = nullptr;
  auto file = selm::gguf::File::open(path);
  if (!file.ok()) return report(file.status());
  auto loaded = selm::text::Tokenizer::load(file.value());
  if (!loaded.ok()) return report(loaded.status());
  auto handle = std::make_unique<selm_tokenizer>();
  handle->own = std::move(loaded.value());
  handle->name();
  *tokenizer = handle.release();
  return SELM_OK;
}

void selm_tokenizer_free(selm_tokenizer* tokenizer) { delete tokenizer; }

selm_status selm_tokenize(const selm_tokenizer* tokenizer, const char* text, size_t length, bool add_special,
                          bool parse_special, selm_token* tokens, size_t capacity, size_t* n_tokens) {
  if (tokenizer == nullptr || (text == nullptr && length > 0) || n_tokens == nullptr ||
      (tokens == nullptr && capacity > 0)) {
    return invalid("tokenizer, text, tokens and n_tokens must not be NULL");
  }
  const auto ids =
      tokenizer->get().encode(std::string_view(length > 0 ? text : "", length), add_special, parse_special);
  return copy_out(ids.data(), ids.size(), tokens, capacity, n_tokens);
}

selm_status selm_detokenize(const selm_tokenizer* tokenizer, const selm_token* tokens, size_t n_tokens,
                            bool special, char* text, size_t capacity, size_t* length) {
  if (tokenizer == nullptr || (tokens == nullptr && n_tokens > 0) || length == nullptr ||
      (text == nullptr && capacity > 0)) {
    return invalid("tokenizer, tokens, text and length must not be NULL");
  }
  const std::string bytes = tokenizer->get().decode(std::span(tokens, n_tokens), special);
  return copy_out(bytes.data(), bytes.size(), text, capacity, length);
}

selm_status selm_vocab_get_info(const selm_tokenizer* tokenizer, selm_vocab_info* info) {
  if (tokenizer == nullptr || info == nullptr) return invalid("tokenizer and info must not be NULL");
  const selm::text::SpecialTokens& s = tokenizer->get().special();
  const selm_vocab_info values{sizeof(selm_vocab_info),
                               tokenizer->model.c_str(),
                               tokenizer->pre.c_str(),
                               static_cast<uint32_t>(tokenizer->get().size()),
                               s.bos,
                               s.eos,
                               s.eot,
                               s.eom,
                               s.unknown,
                               s.padding,
                               s.add_bos,
                               s.add_eos,
                               s.add_space_prefix};
  return write_struct(values, info);
}

bool selm_token_is_end(const selm_tokenizer* tokenizer, selm_token token) {
  return tokenizer != nullptr && tokenizer->get().is_end(token);
}

selm_status selm_token_get(const selm_tokenizer* tokenizer, selm_token token, const char** text,
                           size_t* length, int32_t* type) {
  if (tokenizer == nullptr || text == nullptr || length == nullptr) return invalid("an argument is NULL");
  if (token < 0 || static_cast<size_t>(token) >= tokenizer->get().size())
    return invalid("there is no such token");
  const std::string_view value = tokenizer->get().text(token);
  *text = value.data();
  *length = value.size();
  if (type != nullptr) *type = static_cast<int32_t>(tokenizer->get().type(token));
  return SELM_OK;
}

/* ---- Conversations ---- */

selm_status selm_chat_format(const selm_model* model, const selm_chat_options* options,
                             const selm_chat_message* messages, size_t n_messages, char* text,
                             size_t capacity, size_t* length) {
  if (model == nullptr || (messages == nullptr && n_messages > 0) || length == nullptr ||
      (text == nullptr && capacity > 0)) {
    return invalid("model, messages, text and length must not be NULL");
  }
  selm_chat_options o = SELM_CHAT_OPTIONS_INIT;
  if (const selm::Status read = read_options(options, &o); !read.ok()) return report(read);
  const auto format = chat_format(*model, o.family);
  if (!format.ok()) return report(format.status());
  std::vector<selm::text::ChatMessage> said;
  for (size_t i = 0; i < n_messages; ++i) {
    if (messages[i].role == nullptr || messages[i].content == nullptr)
      return invalid("a message needs a role and a content");
    said.push_back({messages[i].role, messages[i].content});
  }
  const auto written = format_chat(format.value(), said, o.begin_reply, model->tokenizer.get());
  if (!written.ok()) return report(written.status());
  return copy_out(written.value().data(), written.value().size(), text, capacity, length);
}
