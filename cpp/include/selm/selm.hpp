// SELM Edge for C++17 and newer: selm.h with owners that free themselves. Nothing but calls of the C API, in
// one header; no exception is thrown.
//
//   selm::Result<selm::Model> model = selm::Model::open("model.gguf");
//   if (!model) return std::puts(model.error().message.c_str());
//
// An owner is as large as a pointer and may be moved, not copied. `get()` is the handle, for every call of
// selm.h that has no name here. What an owner was made from outlives it, as selm.h says: model, session,
// generation.
#ifndef SELM_HPP
#define SELM_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "selm/selm.h"

namespace selm {
inline namespace wrapper {  // names of its own: the archive has a selm::Result of another kind inside

struct Error {
  selm_status status = SELM_OK;
  std::string message;
};

// A value, or the error that says why there is none.
template <class T>
class Result {
 public:
  Result(T value) : value_(std::move(value)) {}      // NOLINT: implicit on purpose
  Result(Error error) : error_(std::move(error)) {}  // NOLINT

  explicit operator bool() const { return value_.has_value(); }
  T& operator*() { return *value_; }
  T* operator->() { return &*value_; }
  const T& operator*() const { return *value_; }
  const T* operator->() const { return &*value_; }
  const Error& error() const { return error_; }

 private:
  std::optional<T> value_;
  Error error_;
};

// The error of the call just made by this thread.
inline Error last_error(selm_status status) { return {status, selm_last_error()}; }

namespace detail {

template <class Handle, void (*kFree)(Handle*)>
class Owner {
 public:
  Owner() = default;
  explicit Owner(Handle* handle) : handle_(handle) {}
  Handle* get() const { return handle_.get(); }
  Handle* release() { return handle_.release(); }

 private:
  struct Free {
    void operator()(Handle* handle) const { kFree(handle); }
  };
  std::unique_ptr<Handle, Free> handle_;
};

// Calls make(&handle) and owns what it made.
template <class Owned, class Handle, class Make>
Result<Owned> made(const Make& make) {
  Handle* handle = nullptr;
  const selm_status status = make(&handle);
  if (status != SELM_OK) return last_error(status);
  return Owned(handle);
}

}  // namespace detail

// Of a model, or of a file by itself; a view: it is freed by whoever made it.
class TokenizerView {
 public:
  explicit TokenizerView(const selm_tokenizer* handle) : handle_(handle) {}
  const selm_tokenizer* get() const { return handle_; }

  // With the beginning-of-text token where the model wants one (add_special); control tokens that are written
  // in the text are read as such (parse_special).
  Result<std::vector<selm_token>> tokenize(std::string_view text, bool add_special,
                                           bool parse_special) const {
    std::vector<selm_token> tokens(text.size() + 8);
    size_t count = 0;
    selm_status status = SELM_ERROR_BUFFER_TOO_SMALL;
    while (status == SELM_ERROR_BUFFER_TOO_SMALL) {
      if (count > tokens.size()) tokens.resize(count);
      status = selm_tokenize(handle_, text.data(), text.size(), add_special, parse_special, tokens.data(),
                             tokens.size(), &count);
    }
    if (status != SELM_OK) return last_error(status);
    tokens.resize(count);
    return tokens;
  }

 private:
  const selm_tokenizer* handle_;
};

class Grammar : public detail::Owner<selm_grammar, selm_grammar_free> {
 public:
  using Owner::Owner;
  static Result<Grammar> json_schema(TokenizerView tokenizer, std::string_view schema) {
    return make(tokenizer, SELM_GRAMMAR_JSON_SCHEMA, schema);
  }
  static Result<Grammar> gbnf(TokenizerView tokenizer, std::string_view text) {
    return make(tokenizer, SELM_GRAMMAR_GBNF, text);
  }

 private:
  static Result<Grammar> make(TokenizerView tokenizer, selm_grammar_kind kind, std::string_view text) {
    return detail::made<Grammar, selm_grammar>([&](selm_grammar** grammar) {
      return selm_grammar_create(tokenizer.get(), kind, text.data(), text.size(), grammar);
    });
  }
};

class Generation : public detail::Owner<selm_generation, selm_generation_free> {
 public:
  using Owner::Owner;
  struct Step {
    std::string_view text;  // whole UTF-8, until the next step
    selm_token token;       // -1 at the end
    selm_finish finish;     // NONE while there is more
  };
  Result<Step> next() {
    const char* text = "";
    size_t length = 0;
    Step step{{}, -1, SELM_FINISH_NONE};
    const selm_status status = selm_generation_next(get(), &text, &length, &step.token, &step.finish);
    if (status != SELM_OK) return last_error(status);
    step.text = {text, length};
    return step;
  }
  selm_generation_stats stats() const {
    selm_generation_stats found{};
    found.struct_size = sizeof found;
    (void)selm_generation_get_stats(get(), &found);
    return found;
  }
};

class Session : public detail::Owner<selm_session, selm_session_free> {
 public:
  using Owner::Owner;
  // logits: as selm_session_eval wants them.
  Error eval(const std::vector<selm_token>& tokens, selm_logits which = SELM_LOGITS_NONE,
             float* logits = nullptr) {
    const selm_status status = selm_session_eval(get(), tokens.data(), tokens.size(), which, logits);
    return status == SELM_OK ? Error() : last_error(status);
  }
  Result<Generation> generate(const std::vector<selm_token>& prompt,
                              const selm_generation_options& options = SELM_GENERATION_OPTIONS_INIT,
                              const selm_sampling& sampling = SELM_SAMPLING_INIT) {
    return detail::made<Generation, selm_generation>([&](selm_generation** generation) {
      return selm_generation_create(get(), prompt.data(), prompt.size(), &sampling, &options, generation);
    });
  }
  void cancel() { selm_session_cancel(get()); }  // from any thread
  selm_session_info info() const {
    selm_session_info found{};
    found.struct_size = sizeof found;
    (void)selm_session_get_info(get(), &found);
    return found;
  }
};

class Model : public detail::Owner<selm_model, selm_model_free> {
 public:
  using Owner::Owner;
  static Result<Model> open(const std::string& path,
                            const selm_model_options& options = SELM_MODEL_OPTIONS_INIT) {
    return detail::made<Model, selm_model>(
        [&](selm_model** model) { return selm_model_open(path.c_str(), &options, model); });
  }
  static Result<Model> open(const selm_source& source,
                            const selm_model_options& options = SELM_MODEL_OPTIONS_INIT) {
    return detail::made<Model, selm_model>(
        [&](selm_model** model) { return selm_model_open_source(&source, &options, model); });
  }
  Result<Session> session(const selm_session_options& options = SELM_SESSION_OPTIONS_INIT) const {
    return detail::made<Session, selm_session>(
        [&](selm_session** session) { return selm_session_create(get(), &options, session); });
  }
  TokenizerView tokenizer() const { return TokenizerView(selm_model_tokenizer(get())); }
  // A conversation as tokens, for Session::generate.
  Result<std::vector<selm_token>> read_chat(const std::vector<selm_chat_message>& messages,
                                            const selm_chat_options& options = SELM_CHAT_OPTIONS_INIT) const {
    std::string text;
    size_t length = 0;
    selm_status status =
        selm_chat_format(get(), &options, messages.data(), messages.size(), nullptr, 0, &length);
    if (status == SELM_OK) {
      text.resize(length);
      status =
          selm_chat_format(get(), &options, messages.data(), messages.size(), text.data(), length, &length);
    }
    if (status != SELM_OK) return last_error(status);
    return tokenizer().tokenize(text, false, true);
  }
};

}  // namespace wrapper
}  // namespace selm

#endif
