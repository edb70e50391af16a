// Replies being made and what they have to be: _core.Generation, _core.Grammar.
#pragma once

#include "handles.h"

namespace selm_python {

// What a generation's Python object and a running step share.
struct GenerationState {
  std::shared_ptr<SessionState> session;
  std::shared_ptr<selm_grammar> grammar;  // or none
  std::unique_ptr<selm_generation, decltype(&selm_generation_free)> generation{nullptr, selm_generation_free};
  std::mutex stats_mutex;  // held for a copy only, so that reading figures never waits for a step
  selm_generation_stats stats{};

  ~GenerationState() {
    if (!generation) return;
    const std::lock_guard<std::mutex> lock(session->mutex);
    end();
  }

  selm_generation_stats copy() {
    const std::lock_guard<std::mutex> lock(stats_mutex);
    return stats;
  }

  // From here on the caller holds the session's mutex.
  void refresh() {
    selm_generation_stats now{};
    now.struct_size = sizeof now;
    check(selm_generation_get_stats(generation.get(), &now));
    const std::lock_guard<std::mutex> lock(stats_mutex);
    stats = now;
  }

  void end() {  // gives the session back
    generation.reset();
    session->lent = false;
    session->refresh();
  }
};

inline selm_draft draft_named(const std::string& name) {
  if (name == "auto") return SELM_DRAFT_AUTO;
  if (name == "off") return SELM_DRAFT_OFF;
  if (name == "exit") return SELM_DRAFT_EXIT;
  if (name == "lookup") return SELM_DRAFT_LOOKUP;
  if (name == "calibrated") return SELM_DRAFT_CALIBRATED;
  fail(SELM_ERROR_INVALID_ARGUMENT, "draft is auto, off, exit, lookup or calibrated");
}

// What a reply has to be. A generation holds it, and it the vocabulary.
class Grammar {
 public:
  Grammar(const Tokenizer& tokenizer, const std::string& kind, const std::string& text) {
    if (kind != "schema" && kind != "gbnf") fail(SELM_ERROR_INVALID_ARGUMENT, "kind is schema or gbnf");
    const std::shared_ptr<const selm_tokenizer> owner = tokenizer.handle();
    const py::gil_scoped_release release;
    selm_grammar* made = nullptr;
    check(selm_grammar_create(owner.get(), kind == "gbnf" ? SELM_GRAMMAR_GBNF : SELM_GRAMMAR_JSON_SCHEMA,
                              text.data(), text.size(), &made));
    handle_ = std::shared_ptr<selm_grammar>(made, [owner](selm_grammar* g) { selm_grammar_free(g); });
    selm_vocab_info info{};
    info.struct_size = sizeof info;
    check(selm_vocab_get_info(owner.get(), &info));
    size_ = info.size;
  }

  size_t size() const { return size_; }
  const std::shared_ptr<selm_grammar>& handle() const { return handle_; }

 private:
  std::shared_ptr<selm_grammar> handle_;
  size_t size_ = 0;
};

// A text that is held to a grammar token by token.
class Matcher {
 public:
  explicit Matcher(const Grammar& grammar) : grammar_(grammar.handle()), size_(grammar.size()) {
    selm_matcher* made = nullptr;
    check(selm_matcher_create(grammar_.get(), &made));
    handle_.reset(made);
  }

  py::bytes allowed() {
    std::vector<float> logits(size_, 0.0f);
    check(selm_matcher_mask(handle_.get(), logits.data()));
    std::string found(size_, '\0');
    for (size_t t = 0; t < size_; ++t) found[t] = logits[t] == 0.0f ? '\1' : '\0';
    return py::bytes(found);
  }
  void mask(const py::buffer& logits) {
    const py::buffer_info info = logits.request(true);
    if (info.ndim != 1 || info.format != py::format_descriptor<float>::format() ||
        info.shape[0] != static_cast<py::ssize_t>(size_) || info.strides[0] != sizeof(float))
      fail(SELM_ERROR_INVALID_ARGUMENT, "logits are as many floats as there are tokens");
    check(selm_matcher_mask(handle_.get(), static_cast<float*>(info.ptr)));
  }
  void read(selm_token token) { check(selm_matcher_read(handle_.get(), token)); }
  bool complete() const { return selm_matcher_complete(handle_.get()); }

 private:
  std::shared_ptr<selm_grammar> grammar_;
  size_t size_;
  std::unique_ptr<selm_matcher, decltype(&selm_matcher_free)> handle_{nullptr, selm_matcher_free};
};

class Generation {
 public:
  Generation(const Session& session, const Tokens& prompt, selm_sampling sampling,
             const std::map<selm_token, float>& logit_bias, const std::vector<std::string>& stop,
             uint32_t max_tokens, bool ignore_end, bool special, bool reuse_prefix, const std::string& draft,
             float exit_threshold, const std::optional<Grammar>& grammar)
      : state_(std::make_shared<GenerationState>()) {
    std::vector<selm_logit_bias> bias;
    for (const auto& [token, amount] : logit_bias) bias.push_back({token, amount});
    sampling.bias = bias.data();
    sampling.n_bias = bias.size();
    std::vector<const char*> stop_pointers;
    for (const std::string& text : stop) stop_pointers.push_back(text.c_str());
    selm_generation_options options = SELM_GENERATION_OPTIONS_INIT;
    options.max_tokens = max_tokens;
    options.stop = stop_pointers.data();
    options.n_stop = stop_pointers.size();
    options.ignore_end = ignore_end;
    options.special = special;
    options.reuse_prefix = reuse_prefix;
    options.draft = draft_named(draft);
    options.exit_threshold = exit_threshold;
    if (grammar) state_->grammar = grammar->handle();
    options.grammar = state_->grammar.get();

    state_->session = session.state();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(state_->session->mutex);
    if (state_->session->lent) fail(SELM_ERROR_INVALID_ARGUMENT, "the session already runs a generation");
    selm_generation* created = nullptr;
    check(selm_generation_create(state_->session->session.get(), prompt.data(), prompt.size(), &sampling,
                                 &options, &created));
    state_->generation.reset(created);
    state_->session->lent = true;
    state_->refresh();
  }

  // (piece of text, its token or -1, finish: 0 while there is more)
  std::tuple<std::string, selm_token, int> next() {
    const std::shared_ptr<GenerationState> state = state_;
    std::string piece;
    selm_token token = -1;
    selm_finish finish = SELM_FINISH_CANCELLED;
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(state->session->mutex);
    if (!state->generation) return {piece, token, static_cast<int>(state->copy().finish)};
    const char* text = "";
    size_t length = 0;
    const selm_status status = selm_generation_next(state->generation.get(), &text, &length, &token, &finish);
    if (status != SELM_OK) {
      std::string message = selm_last_error();
      state->end();
      fail(status, std::move(message));
    }
    piece.assign(text, length);
    state->refresh();
    state->session->refresh();
    if (finish != SELM_FINISH_NONE) state->end();
    return {std::move(piece), token, static_cast<int>(finish)};
  }

  void cancel() { selm_session_cancel(state_->session->session.get()); }

  void close() {  // waits for a step that runs on another thread
    const std::shared_ptr<GenerationState> state = state_;
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(state->session->mutex);
    if (!state->generation) return;
    state->end();
    const std::lock_guard<std::mutex> stats_lock(state->stats_mutex);
    state->stats.finish = SELM_FINISH_CANCELLED;
  }

  selm_generation_stats stats() const { return state_->copy(); }

 private:
  std::shared_ptr<GenerationState> state_;
};

}  // namespace selm_python
