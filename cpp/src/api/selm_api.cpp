// The C API: checks arguments, keeps the last message, calls the engine.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "api/handles.h"
#include "api/options.h"
#include "api/report.h"
#include "base/cpu.h"
#include "base/file_bytes.h"
#include "base/memory.h"
#include "engine/session.h"
#include "engine/snapshot.h"
#include "gguf/cursor.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "selm/selm.h"

using selm::Code;
using selm::Result;
using selm::Status;
using selm::api::choose_kernels;
using selm::api::invalid;
using selm::api::read_options;
using selm::api::report;
using selm::api::write_struct;
namespace engine = selm::engine;
namespace kernels = selm::kernels;

static_assert(static_cast<int>(Code::buffer_too_small) == SELM_ERROR_BUFFER_TOO_SMALL);
static_assert(static_cast<int>(Code::context_full) == SELM_ERROR_CONTEXT_FULL);
static_assert(static_cast<int>(Code::deadline) == SELM_ERROR_DEADLINE);
static_assert(static_cast<int>(engine::Logits::all) == SELM_LOGITS_ALL);
static_assert(static_cast<int>(engine::KvType::f32) == SELM_KV_F32);
static_assert(static_cast<int>(engine::KvType::q8_0) == SELM_KV_Q8_0);

struct selm_model {
  std::unique_ptr<selm::model::Model> model;
  selm_tokenizer tokenizer;
};

struct selm_adapter {
  std::unique_ptr<selm::model::Adapter> adapter;
};

namespace selm::api {

Result<const kernels::Table*> choose_kernels(const char* isa) {
  if (isa == nullptr) isa = std::getenv("SELM_ISA");
  if (isa == nullptr || *isa == '\0') return kernels::best();
  const kernels::Table* table = kernels::by_name(isa);
  if (table == nullptr) {
    return selm::error(Code::invalid_argument,
                       "the instruction set '%.32s' is unknown or missing here; best is %s", isa,
                       kernels::best()->name);
  }
  return table;
}

}  // namespace selm::api

namespace {

Result<selm::gguf::File> file_of(const selm_source* given) {
  using selm::FileBytes;
  selm_source s = SELM_SOURCE_INIT;
  SELM_TRY(read_options(given, &s));
  const int named = (s.path != nullptr) + (s.fd >= 0) + (s.data != nullptr) + (s.read != nullptr);
  if (named != 1)
    return selm::error(Code::invalid_argument, "a source has one of path, fd, data and read, not %d", named);
  const auto how = s.copy ? FileBytes::How::copy : FileBytes::How::map;
  Result<FileBytes> bytes = FileBytes();
  if (s.data != nullptr) {
    bytes = FileBytes::borrowed({static_cast<const std::byte*>(s.data), static_cast<size_t>(s.size)});
  } else if (s.read != nullptr) {
    bytes = FileBytes::read(s.size, [&s](uint64_t offset, std::byte* buffer, size_t wanted) {
      return s.read(s.user, offset, buffer, wanted);
    });
  } else {
    bytes = s.path != nullptr ? FileBytes::open(std::string(s.path), how) : FileBytes::open(s.fd, how);
  }
  if (!bytes.ok()) return bytes.status();
  return selm::gguf::File::open(std::move(bytes.value()));
}

Result<engine::SessionOptions> session_options(const selm_session_options* given) {
  selm_session_options o = SELM_SESSION_OPTIONS_INIT;
  SELM_TRY(read_options(given, &o));
  if (o.kv_type < SELM_KV_F16 || o.kv_type > SELM_KV_Q8_0) {
    return selm::error(Code::invalid_argument, "there is no kv_type %d", static_cast<int>(o.kv_type));
  }
  engine::SessionOptions out{o.context,    o.threads,      o.batch, static_cast<engine::KvType>(o.kv_type),
                             o.exact != 0, o.memory_limit, {}};
  if ((o.allocator.allocate == nullptr) != (o.allocator.release == nullptr))
    return selm::error(Code::invalid_argument, "an allocator has both functions, or neither");
  if (o.allocator.allocate != nullptr)
    out.allocator = {o.allocator.allocate, o.allocator.release, o.allocator.user};
  return out;
}

void fill_names(selm_tokenizer* tokenizer) {
  tokenizer->model = std::string(tokenizer->get().model());
  tokenizer->pre = std::string(tokenizer->get().pre());
}

// Copies as much as fits; *n is always the whole length.
template <class T>
selm_status copy_out(const T* values, size_t count, T* out, size_t capacity, size_t* n) {
  *n = count;
  if (out == nullptr) return SELM_OK;  // only the length was asked for
  if (count > 0) std::memcpy(out, values, std::min(count, capacity) * sizeof(T));
  if (count > capacity) {
    return report(
        selm::error(Code::buffer_too_small, "the buffer takes %zu; %zu are needed", capacity, count));
  }
  return SELM_OK;
}

}  // namespace

uint32_t selm_abi(void) { return SELM_ABI; }
const char* selm_version(void) { return SELM_VERSION; }

const char* selm_status_name(selm_status status) {
  static constexpr const char* kNames[] = {
      "ok",           "invalid_argument", "io",       "format",   "unsupported",     "out_of_memory",
      "context_full", "cancelled",        "deadline", "internal", "buffer_too_small"};
  const auto index = static_cast<size_t>(status);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

const char* selm_isa(void) {
  const Result<const kernels::Table*> table = choose_kernels(nullptr);
  return table.ok() ? table.value()->name : kernels::best()->name;
}

/* ---- Model ---- */

selm_status selm_model_open(const char* path, const selm_model_options* options, selm_model** model) {
  if (path == nullptr || model == nullptr) return invalid("path and model must not be NULL");
  selm_source source = SELM_SOURCE_INIT;
  source.path = path;
  return selm_model_open_source(&source, options, model);
}

selm_status selm_model_open_source(const selm_source* source, const selm_model_options* options,
                                   selm_model** model) {
  if (source == nullptr || model == nullptr) return invalid("source and model must not be NULL");
  *model = nullptr;
  selm_model_options o = SELM_MODEL_OPTIONS_INIT;
  if (const Status read = read_options(options, &o); !read.ok()) return report(read);
  const auto table = choose_kernels(o.isa);
  if (!table.ok()) return report(table.status());
  auto file = file_of(source);
  if (!file.ok()) return report(file.status());
  auto opened = selm::model::Model::open(std::move(file.value()), {table.value(), o.check_weights});
  if (!opened.ok()) return report(opened.status());
  auto handle = std::make_unique<selm_model>();
  handle->model = std::move(opened.value());
  handle->tokenizer.view = &handle->model->tokenizer();
  fill_names(&handle->tokenizer);
  *model = handle.release();
  return SELM_OK;
}

void selm_model_free(selm_model* model) { delete model; }

selm_status selm_model_get_info(const selm_model* model, selm_model_info* info) {
  if (model == nullptr || info == nullptr) return invalid("model and info must not be NULL");
  const selm::model::Model& m = *model->model;
  const selm::model::Hparams& h = m.hparams();
  const selm::model::LayerShape& first = h.layers.front();
  const selm_model_info values{sizeof(selm_model_info),
                               h.arch_name.c_str(),
                               m.kernels().name,
                               m.n_vocab(),
                               static_cast<uint32_t>(h.layers.size()),
                               h.n_embd,
                               first.n_head,
                               first.n_head_kv,
                               first.n_ff,
                               h.n_ctx_train,
                               m.n_params(),
                               m.file().size(),
                               m.weight_bytes()};
  return write_struct(values, info);
}

const selm_tokenizer* selm_model_tokenizer(const selm_model* model) {
  return model == nullptr ? nullptr : &model->tokenizer;
}

/* ---- Metadata ---- */

size_t selm_meta_count(const selm_model* model) {
  return model == nullptr ? 0 : model->model->file().entries().size();
}

selm_status selm_meta_get(const selm_model* model, size_t index, selm_meta* meta) {
  if (meta == nullptr || index >= selm_meta_count(model)) return invalid("there is no such metadata entry");
  const selm::gguf::Entry& e = model->model->file().entries()[index];
  const bool text = e.type == selm::gguf::ValueType::string;
  const selm_meta values{sizeof(selm_meta),
                         e.key.data(),
                         e.key.size(),
                         static_cast<selm_meta_type>(e.type),
                         e.is_array,
                         e.count,
                         text ? nullptr : static_cast<const void*>(e.data)};
  return write_struct(values, meta);
}

selm_status selm_meta_string(const selm_model* model, size_t index, uint64_t element, const char** text,
                             size_t* length) {
  if (text == nullptr || length == nullptr || index >= selm_meta_count(model)) {
    return invalid("there is no such metadata entry");
  }
  const selm::gguf::Entry& e = model->model->file().entries()[index];
  if (e.type != selm::gguf::ValueType::string || element >= e.count)
    return invalid("the entry holds no such string");
  const std::string_view value = model->model->file().string(e, element);
  *text = value.data();
  *length = value.size();
  return SELM_OK;
}

/* ---- Tokenizer ---- */

selm_status selm_tokenizer_open(const char* path, selm_tokenizer** tokenizer) {
  if (path == nullptr || tokenizer == nullptr) return invalid("path and tokenizer must not be NULL");
  *tokenizer = nullptr;
  auto file = selm::gguf::File::open(path);
  if (!file.ok()) return report(file.status());
  auto loaded = selm::text::Tokenizer::load(file.value());
  if (!loaded.ok()) return report(loaded.status());
  auto handle = std::make_unique<selm_tokenizer>();
  handle->own = std::move(loaded.value());
  fill_names(handle.get());
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

/* ---- Session ---- */

selm_status selm_session_plan(const selm_model* model, const selm_session_options* options,
                              selm_memory_plan* plan) {
  if (model == nullptr || plan == nullptr) return invalid("model and plan must not be NULL");
  const auto wanted = session_options(options);
  if (!wanted.ok()) return report(wanted.status());
  const auto planned = engine::Session::plan(*model->model, wanted.value());
  if (!planned.ok()) return report(planned.status());
  const engine::MemoryPlan& p = planned.value();
  return write_struct(
      selm_memory_plan{sizeof(selm_memory_plan), p.weights_mapped, p.kv_bytes, p.scratch_bytes}, plan);
}

selm_status selm_session_create(selm_model* model, const selm_session_options* options,
                                selm_session** session) {
  if (model == nullptr || session == nullptr) return invalid("model and session must not be NULL");
  *session = nullptr;
  const auto wanted = session_options(options);
  if (!wanted.ok()) return report(wanted.status());
  auto created = engine::Session::create(*model->model, wanted.value());
  if (!created.ok()) return report(created.status());
  *session = new selm_session{std::move(created.value())};
  return SELM_OK;
}

void selm_session_free(selm_session* session) { delete session; }

selm_status selm_session_eval(selm_session* session, const selm_token* tokens, size_t n_tokens,
                              selm_logits which, float* logits) {
  if (session == nullptr || (tokens == nullptr && n_tokens > 0))
    return invalid("session and tokens must not be NULL");
  if (which < SELM_LOGITS_NONE || which > SELM_LOGITS_ALL ||
      (which != SELM_LOGITS_NONE && logits == nullptr)) {
    return invalid("logits must not be NULL unless none are asked for");
  }
  return report(
      session->session->eval(std::span(tokens, n_tokens), static_cast<engine::Logits>(which), logits));
}

selm_status selm_session_embed(selm_session* session, const selm_token* tokens, size_t n_tokens,
                               float* embedding) {
  if (session == nullptr || tokens == nullptr || embedding == nullptr) return invalid("an argument is NULL");
  return report(session->session->embed(std::span(tokens, n_tokens), embedding));
}

uint32_t selm_session_context(const selm_session* session) {
  return session == nullptr ? 0 : static_cast<uint32_t>(session->session->context());
}

uint32_t selm_session_threads(const selm_session* session) {
  return session == nullptr ? 0 : session->session->threads();
}

uint32_t selm_session_position(const selm_session* session) {
  return session == nullptr ? 0 : static_cast<uint32_t>(session->session->tokens().size());
}

uint64_t selm_session_state_bytes(const selm_session* session) {
  return session == nullptr ? 0 : session->session->state_bytes();
}

selm_status selm_session_truncate(selm_session* session, uint32_t n_tokens) {
  if (session == nullptr) return invalid("session must not be NULL");
  if (n_tokens > session->session->tokens().size())
    return invalid("the session holds fewer tokens than that");
  session->session->truncate(n_tokens);
  return SELM_OK;
}

selm_status selm_session_save(selm_session* session, void* data, size_t capacity, size_t* size) {
  if (session == nullptr || size == nullptr) return invalid("session and size must not be NULL");
  return report(engine::Snapshot::save(*session->session, static_cast<std::byte*>(data), capacity, size));
}

selm_status selm_session_save_file(selm_session* session, const char* path) {
  if (session == nullptr || path == nullptr) return invalid("session and path must not be NULL");
  return report(engine::Snapshot::save_file(*session->session, path));
}

selm_status selm_session_restore(selm_session* session, const void* data, size_t size) {
  if (session == nullptr || data == nullptr) return invalid("session and data must not be NULL");
  return report(engine::Snapshot::restore(*session->session, {static_cast<const std::byte*>(data), size}));
}

selm_status selm_session_restore_file(selm_session* session, const char* path) {
  if (session == nullptr || path == nullptr) return invalid("session and path must not be NULL");
  return report(engine::Snapshot::restore_file(*session->session, path));
}

selm_status selm_session_fork(selm_session* session, const selm_session_options* options,
                              selm_session** fork) {
  if (session == nullptr || fork == nullptr) return invalid("session and fork must not be NULL");
  *fork = nullptr;
  const auto wanted = session_options(options);
  if (!wanted.ok()) return report(wanted.status());
  auto made = engine::Snapshot::fork(*session->session, options == nullptr ? nullptr : &wanted.value());
  if (!made.ok()) return report(made.status());
  *fork = new selm_session{std::move(made.value())};
  return SELM_OK;
}

selm_status selm_session_set_expert(selm_session* session, const char* name) {
  if (session == nullptr) return invalid("session must not be NULL");
  if (name == nullptr) {
    session->session->set_expert(engine::Session::kAnyExpert);
    return SELM_OK;
  }
  const std::vector<std::string>& names = session->session->model().hparams().selm.experts;
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    std::string all;
    for (const std::string& other : names) {
      if (!all.empty()) all += ", ";
      all += selm::gguf::printable(other);
    }
    return report(selm::error(Code::invalid_argument, "no expert '%s'; the model has %s",
                              selm::gguf::printable(name).c_str(), all.empty() ? "none" : all.c_str()));
  }
  session->session->set_expert(static_cast<size_t>(found - names.begin()));
  return SELM_OK;
}

selm_status selm_adapter_open(const selm_model* model, const char* path, selm_adapter** adapter) {
  if (model == nullptr || path == nullptr || adapter == nullptr) return invalid("an argument is NULL");
  *adapter = nullptr;
  auto opened = selm::model::Adapter::open(path, *model->model);
  if (!opened.ok()) return report(opened.status());
  *adapter = new selm_adapter{std::move(opened.value())};
  return SELM_OK;
}

void selm_adapter_free(selm_adapter* adapter) { delete adapter; }

selm_status selm_session_set_adapters(selm_session* session, const selm_adapter* const* adapters,
                                      const float* scales, size_t n) {
  if (session == nullptr || (n > 0 && (adapters == nullptr || scales == nullptr)))
    return invalid("an argument is NULL");
  std::vector<engine::Session::ActiveAdapter> active;
  for (size_t i = 0; i < n; ++i) {
    if (adapters[i] == nullptr) return invalid("an adapter is NULL");
    if (!std::isfinite(scales[i])) return invalid("a scale is not finite");
    active.push_back({adapters[i]->adapter.get(), scales[i]});
  }
  return report(session->session->set_adapters(std::move(active)));
}

int32_t selm_session_speaker(const selm_session* session, uint32_t position) {
  if (session == nullptr || position >= session->session->tokens().size()) return -1;
  return session->session->speaker(position);
}

const selm_token* selm_session_tokens(const selm_session* session, size_t* n_tokens) {
  if (n_tokens != nullptr) *n_tokens = session == nullptr ? 0 : session->session->tokens().size();
  return session == nullptr ? nullptr : session->session->tokens().data();
}

void selm_session_cancel(selm_session* session) {
  if (session != nullptr) session->session->cancel();
}

void selm_session_clear_cancel(selm_session* session) {
  if (session != nullptr) session->session->clear_cancel();
}

void selm_session_set_deadline(selm_session* session, uint32_t milliseconds) {
  if (session != nullptr) session->session->set_deadline(milliseconds);
}
