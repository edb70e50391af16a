// What the Python objects of selm_edge._core hold: handles of the C API with safe lifetimes.
//
// Lifetimes: every handle sits in a shared_ptr. A session holds its model, a generation its
// session, a running call what it runs on; so close() only lets go, and may be called twice.
// Threads: the GIL is released around everything that computes. A session has one mutex, taken
// after the GIL was released and let go before it is taken back, so the two never deadlock;
// cancel() takes neither.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "selm/selm.h"

namespace selm_python {

namespace py = pybind11;

using Tokens = std::vector<selm_token>;
using Path = py::typing::Union<py::str, py::bytes>;  // bytes: names that are no valid UTF-8

// Becomes _core.CoreError(status name, message).
struct CoreFailure {
  std::string status;
  std::string message;
};

[[noreturn]] inline void fail(selm_status status, std::string message) {
  throw CoreFailure{selm_status_name(status), std::move(message)};
}

// Must follow the call on the same thread: the message is that thread's last one.
inline void check(selm_status status) {
  if (status != SELM_OK) fail(status, selm_last_error());
}

inline py::str text_of(const char* text, size_t length) {  // what a file says may be no valid UTF-8
  PyObject* string = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), "replace");
  if (string == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(string);
}

// A block of float32 for the buffer protocol: [columns], or [rows, columns].
class Floats {
 public:
  explicit Floats(size_t columns) : Floats(1, columns) { matrix_ = false; }
  Floats(size_t rows, size_t columns) : rows_(rows), columns_(columns) {
    size_t count = 0;
    if (__builtin_mul_overflow(rows, columns, &count)) throw std::bad_alloc();
    data_.reset(new float[count]);
  }
  float* data() { return data_.get(); }
  py::buffer_info buffer() {
    const auto item = static_cast<py::ssize_t>(sizeof(float));
    const auto rows = static_cast<py::ssize_t>(rows_), columns = static_cast<py::ssize_t>(columns_);
    const std::string format = py::format_descriptor<float>::format();
    if (!matrix_) return {data(), item, format, 1, {columns}, {item}};
    return {data(), item, format, 2, {rows, columns}, {columns * item, item}};
  }

 private:
  size_t rows_, columns_;
  bool matrix_ = true;
  std::unique_ptr<float[]> data_;  // not zeroed: the core writes every element
};

// ---- Model and tokenizer ---------------------------------------------------------------------

// The core's structs with text that outlives the model.
struct ModelInfo : selm_model_info {
  ModelInfo() : selm_model_info{} {}
  std::string own_architecture, own_isa;
};
struct VocabInfo : selm_vocab_info {
  VocabInfo() : selm_vocab_info{} {}
  std::string own_model, own_pre;
};

class Tokenizer {
 public:
  explicit Tokenizer(std::shared_ptr<const selm_tokenizer> handle) : handle_(std::move(handle)) {}
  explicit Tokenizer(const Path& given) {
    const auto path = py::cast<std::string>(given);
    const py::gil_scoped_release release;
    selm_tokenizer* opened = nullptr;
    check(selm_tokenizer_open(path.c_str(), &opened));
    handle_.reset(opened, selm_tokenizer_free);
  }

  Tokens encode(const py::bytes& utf8, bool add_special, bool parse_special) const {
    const auto text = static_cast<std::string_view>(utf8);
    const py::gil_scoped_release release;
    Tokens tokens(text.size() + 2);
    size_t count = 0;
    const auto run = [&] {
      return selm_tokenize(handle_.get(), text.data(), text.size(), add_special, parse_special, tokens.data(),
                           tokens.size(), &count);
    };
    selm_status status = run();
    if (status == SELM_ERROR_BUFFER_TOO_SMALL) {
      tokens.resize(count);
      status = run();
    }
    check(status);
    tokens.resize(count);
    return tokens;
  }

  py::bytes decode(const Tokens& tokens, bool special) const {
    std::string bytes(16 + tokens.size() * 8, '\0');
    size_t length = 0;
    const auto run = [&] {
      return selm_detokenize(handle_.get(), tokens.data(), tokens.size(), special, bytes.data(), bytes.size(),
                             &length);
    };
    selm_status status = run();
    if (status == SELM_ERROR_BUFFER_TOO_SMALL) {
      bytes.resize(length);
      status = run();
    }
    check(status);
    return py::bytes(bytes.data(), length);
  }

  VocabInfo info() const {
    VocabInfo info;
    info.struct_size = sizeof(selm_vocab_info);
    check(selm_vocab_get_info(handle_.get(), &info));
    info.own_model = info.model;
    info.own_pre = info.pre;
    return info;
  }

  const std::shared_ptr<const selm_tokenizer>& handle() const { return handle_; }

  bool is_end(selm_token token) const { return selm_token_is_end(handle_.get(), token); }

  std::pair<py::str, int32_t> token(selm_token token) const {  // (text as in the file, type)
    const char* text = nullptr;
    size_t length = 0;
    int32_t type = 0;
    check(selm_token_get(handle_.get(), token, &text, &length, &type));
    return {text_of(text, length), type};
  }

  py::typing::Dict<py::str, int> control_tokens() const {  // those of type 3
    py::typing::Dict<py::str, int> found;
    const auto size = static_cast<selm_token>(info().size);
    for (selm_token id = 0; id < size; ++id) {
      const char* text = nullptr;
      size_t length = 0;
      int32_t type = 0;
      check(selm_token_get(handle_.get(), id, &text, &length, &type));
      if (type == 3) found[text_of(text, length)] = id;
    }
    return found;
  }

 private:
  std::shared_ptr<const selm_tokenizer> handle_;
};

template <class T>
py::object number(const void* data, size_t index) {
  T value;  // possibly unaligned in the file
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof value, sizeof value);
  return py::cast(value);
}

class Model {
 public:
  Model(const Path& given, bool check_weights, const std::optional<std::string>& isa) {
    const auto path = py::cast<std::string>(given);
    const py::gil_scoped_release release;
    selm_model_options options = SELM_MODEL_OPTIONS_INIT;
    options.check_weights = check_weights;
    options.isa = isa ? isa->c_str() : nullptr;
    selm_model* opened = nullptr;
    check(selm_model_open(path.c_str(), &options, &opened));
    handle_.reset(opened, selm_model_free);
  }

  const std::shared_ptr<selm_model>& handle() const {
    if (!handle_) fail(SELM_ERROR_INVALID_ARGUMENT, "the model is closed");
    return handle_;
  }
  void close() { handle_.reset(); }
  bool closed() const { return !handle_; }

  Tokenizer tokenizer() const {  // shares the model's life
    return Tokenizer(std::shared_ptr<const selm_tokenizer>(handle(), selm_model_tokenizer(handle().get())));
  }

  ModelInfo info() const {
    ModelInfo info;
    info.struct_size = sizeof(selm_model_info);
    check(selm_model_get_info(handle().get(), &info));
    info.own_architecture = info.architecture;
    info.own_isa = info.isa;
    return info;
  }

  // As C programs see a conversation; the package itself runs the file's own template (templates.py).
  std::string chat_format(const std::vector<std::pair<std::string, std::string>>& messages,
                          const std::optional<std::string>& family, bool begin_reply) const {
    std::vector<selm_chat_message> given;
    for (const auto& [role, content] : messages) given.push_back({role.c_str(), content.c_str()});
    selm_chat_options options = SELM_CHAT_OPTIONS_INIT;
    options.family = family ? family->c_str() : nullptr;
    options.begin_reply = begin_reply;
    std::string text;
    size_t length = 0;
    check(selm_chat_format(handle().get(), &options, given.data(), given.size(), nullptr, 0, &length));
    text.resize(length);
    check(
        selm_chat_format(handle().get(), &options, given.data(), given.size(), text.data(), length, &length));
    return text;
  }

  py::typing::Dict<py::str, int> meta_index() const {  // {key: index for meta_value}
    py::typing::Dict<py::str, int> keys;
    const size_t count = selm_meta_count(handle().get());
    for (size_t i = 0; i < count; ++i) {
      const selm_meta meta = meta_at(i);
      keys[text_of(meta.key, meta.key_length)] = i;
    }
    return keys;
  }

  py::object meta_value(size_t index) const {
    const selm_meta meta = meta_at(index);
    if (!meta.is_array) return element(index, meta, 0);
    py::list values(static_cast<size_t>(meta.count));
    for (size_t i = 0; i < meta.count; ++i) values[i] = element(index, meta, i);
    return values;
  }

 private:
  selm_meta meta_at(size_t index) const {
    selm_meta meta{};
    meta.struct_size = sizeof meta;
    check(selm_meta_get(handle().get(), index, &meta));
    return meta;
  }

  py::object element(size_t index, const selm_meta& meta, size_t i) const {
    switch (meta.type) {
      case SELM_META_U8:
        return number<uint8_t>(meta.data, i);
      case SELM_META_I8:
        return number<int8_t>(meta.data, i);
      case SELM_META_U16:
        return number<uint16_t>(meta.data, i);
      case SELM_META_I16:
        return number<int16_t>(meta.data, i);
      case SELM_META_U32:
        return number<uint32_t>(meta.data, i);
      case SELM_META_I32:
        return number<int32_t>(meta.data, i);
      case SELM_META_F32:
        return number<float>(meta.data, i);
      case SELM_META_U64:
        return number<uint64_t>(meta.data, i);
      case SELM_META_I64:
        return number<int64_t>(meta.data, i);
      case SELM_META_F64:
        return number<double>(meta.data, i);
      case SELM_META_BOOL:
        return py::bool_(static_cast<const unsigned char*>(meta.data)[i] != 0);
      case SELM_META_STRING: {
        const char* text = nullptr;
        size_t length = 0;
        check(selm_meta_string(handle().get(), index, i, &text, &length));
        return text_of(text, length);
      }
    }
    fail(SELM_ERROR_INTERNAL, "a metadata type that the binding does not know");
  }

  std::shared_ptr<selm_model> handle_;
};

// ---- Session -----------------------------------------------------------------------------------

class Adapter {
 public:
  Adapter(const Model& model, const Path& given) {
    const auto path = py::cast<std::string>(given);
    const std::shared_ptr<selm_model> owner = model.handle();
    const py::gil_scoped_release release;
    selm_adapter* opened = nullptr;
    check(selm_adapter_open(owner.get(), path.c_str(), &opened));
    handle_ = std::shared_ptr<selm_adapter>(opened, [owner](selm_adapter* a) { selm_adapter_free(a); });
  }
  const std::shared_ptr<selm_adapter>& handle() const { return handle_; }
  selm_adapter_info info() const {
    selm_adapter_info found{};
    found.struct_size = sizeof found;
    check(selm_adapter_get_info(handle_.get(), &found));
    return found;
  }

 private:
  std::shared_ptr<selm_adapter> handle_;  // keeps the model
};

// What a session's Python object and its generation share.
struct SessionState {
  std::shared_ptr<selm_model> model;                    // first: freed after the session
  std::vector<std::shared_ptr<selm_adapter>> adapters;  // in use; freed after the session
  std::unique_ptr<selm_session, decltype(&selm_session_free)> session{nullptr, selm_session_free};
  std::mutex mutex;   // one thread at a time inside the core
  bool lent = false;  // to a generation; under the mutex
  uint32_t n_vocab = 0, n_embd = 0;
  std::atomic<uint32_t> context{0}, threads{0};  // copies, so that a meter never waits for a running eval
  std::atomic<uint32_t> position{0};
  std::atomic<uint64_t> state_bytes{0};

  void refresh() {
    selm_session_info now{};
    now.struct_size = sizeof now;
    check(selm_session_get_info(session.get(), &now));
    context = now.context;
    threads = now.threads;
    position = now.position;
    state_bytes = now.state_bytes;
  }
};

class Session {
 public:
  Session(const Model& model, uint32_t context, uint32_t threads, uint32_t batch, const std::string& kv_type,
          bool exact)
      : state_(std::make_shared<SessionState>()) {
    selm_session_options options = SELM_SESSION_OPTIONS_INIT;
    options.context = context;
    options.threads = threads;
    options.batch = batch;
    if (kv_type != "f16" && kv_type != "f32" && kv_type != "q8_0")
      fail(SELM_ERROR_INVALID_ARGUMENT, "kv_type is f16, f32 or q8_0");
    options.exact = exact ? 1 : 0;
    options.kv_type = kv_type == "f32" ? SELM_KV_F32 : kv_type == "q8_0" ? SELM_KV_Q8_0 : SELM_KV_F16;
    state_->model = model.handle();
    const ModelInfo info = model.info();
    state_->n_vocab = info.n_vocab;
    state_->n_embd = info.n_embd;
    const py::gil_scoped_release release;
    selm_session* created = nullptr;
    check(selm_session_create(state_->model.get(), &options, &created));
    state_->session.reset(created);
    state_->refresh();
  }

  const std::shared_ptr<SessionState>& state() const {
    if (!state_) fail(SELM_ERROR_INVALID_ARGUMENT, "the session is closed");
    return state_;
  }
  void close() { state_.reset(); }
  bool closed() const { return !state_; }

  std::unique_ptr<Floats> eval(const Tokens& tokens, const std::string& which) {
    selm_logits kind = SELM_LOGITS_ALL;
    if (which == "none")
      kind = SELM_LOGITS_NONE;
    else if (which == "last")
      kind = SELM_LOGITS_LAST;
    else if (which != "all")
      fail(SELM_ERROR_INVALID_ARGUMENT, "logits is all, last or none");
    if (tokens.empty()) kind = SELM_LOGITS_NONE;
    size_t rows = 0;
    if (kind != SELM_LOGITS_NONE) rows = kind == SELM_LOGITS_ALL ? tokens.size() : 1;
    std::unique_ptr<Floats> logits;
    alone([&](SessionState& state) {
      logits = std::make_unique<Floats>(rows, state.n_vocab);
      check(selm_session_eval(state.session.get(), tokens.data(), tokens.size(), kind, logits->data()));
    });
    return logits;
  }

  std::unique_ptr<Floats> embed(const Tokens& tokens) {
    auto embedding = std::make_unique<Floats>(state()->n_embd);
    alone([&](SessionState& state) {
      check(selm_session_embed(state.session.get(), tokens.data(), tokens.size(), embedding->data()));
    });
    return embedding;
  }

  void set_adapters(const std::vector<std::pair<Adapter, float>>& adapters) {
    std::vector<std::shared_ptr<selm_adapter>> owned;
    std::vector<const selm_adapter*> handles;
    std::vector<float> scales;
    for (const auto& [adapter, scale] : adapters) {
      owned.push_back(adapter.handle());
      handles.push_back(adapter.handle().get());
      scales.push_back(scale);
    }
    alone([&](SessionState& state) {
      check(selm_session_set_adapters(state.session.get(), handles.data(), scales.data(), handles.size()));
      state.adapters.swap(owned);
    });
  }

  void set_expert(const std::optional<std::string>& name) {
    alone([&](SessionState& state) {
      check(selm_session_set_expert(state.session.get(), name ? name->c_str() : nullptr));
    });
  }
  // While a generation has the session too: between its steps.
  int speaker(uint32_t position) {
    const std::shared_ptr<SessionState> held = state();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(held->mutex);
    return selm_session_speaker(held->session.get(), position);
  }

  uint32_t truncate(uint32_t length) {
    alone([&](SessionState& state) { check(selm_session_truncate(state.session.get(), length)); });
    return position();
  }

  Tokens tokens() {
    Tokens held;
    alone([&](SessionState& state) {
      size_t count = 0;
      const selm_token* first = selm_session_tokens(state.session.get(), &count);
      held.assign(first, first + count);
    });
    return held;
  }

  py::bytes snapshot() {
    std::string bytes;
    alone([&](SessionState& state) {
      size_t size = 0;
      check(selm_session_save(state.session.get(), nullptr, 0, &size));
      bytes.resize(size);
      check(selm_session_save(state.session.get(), bytes.data(), bytes.size(), &size));
    });
    return py::bytes(bytes);
  }
  void save(const Path& given) {
    const auto path = py::cast<std::string>(given);
    alone([&](SessionState& state) { check(selm_session_save_file(state.session.get(), path.c_str())); });
  }
  void restore(const py::bytes& snapshot) {
    const auto bytes = static_cast<std::string_view>(snapshot);
    alone([&](SessionState& state) {
      check(selm_session_restore(state.session.get(), bytes.data(), bytes.size()));
    });
  }
  void restore_file(const Path& given) {
    const auto path = py::cast<std::string>(given);
    alone([&](SessionState& state) { check(selm_session_restore_file(state.session.get(), path.c_str())); });
  }
  std::unique_ptr<Session> fork() {
    auto forked = std::unique_ptr<Session>(new Session());
    forked->state_ = std::make_shared<SessionState>();
    alone([&](SessionState& state) {
      selm_session* made = nullptr;
      check(selm_session_fork(state.session.get(), nullptr, &made));
      forked->state_->session.reset(made);
      forked->state_->model = state.model;
      forked->state_->adapters = state.adapters;
      forked->state_->n_vocab = state.n_vocab;
      forked->state_->n_embd = state.n_embd;
      forked->state_->refresh();
    });
    return forked;
  }

  void cancel() { selm_session_cancel(state()->session.get()); }
  void clear_cancel() { selm_session_clear_cancel(state()->session.get()); }
  void set_deadline(uint32_t milliseconds) {
    alone([&](SessionState& state) { selm_session_set_deadline(state.session.get(), milliseconds); });
  }
  uint32_t context() const { return state()->context; }
  uint32_t threads() const { return state()->threads; }
  uint32_t position() const { return state()->position; }
  uint64_t state_bytes() const { return state()->state_bytes; }

 private:
  // Runs work without the GIL, alone on the session, unless a generation has it.
  template <class Work>
  void alone(Work work) {
    const std::shared_ptr<SessionState> state = this->state();  // outlives a close() meanwhile
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(state->mutex);
    if (state->lent) {
      fail(SELM_ERROR_INVALID_ARGUMENT, "a generation is using the session: finish or close it first");
    }
    work(*state);
    state->refresh();
  }

  Session() = default;

  std::shared_ptr<SessionState> state_;
};

}  // namespace selm_python
