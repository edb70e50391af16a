// The C API: checks arguments, keeps the last message, calls the engine.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "api/bandwidth.h"
#include "api/handles.h"
#include "api/measuring.h"
#include "api/report.h"
#include "base/cpu.h"
#include "base/file_bytes.h"
#include "base/memory.h"
#include "engine/generation.h"
#include "engine/session.h"
#include "engine/snapshot.h"
#include "gguf/cursor.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "quant/dequantize.h"
#include "selm/selm.h"

using selm::Code;
using selm::Result;
using selm::Status;
using selm::api::invalid;
using selm::api::report;
namespace engine = selm::engine;
namespace kernels = selm::kernels;

static_assert(static_cast<int>(Code::buffer_too_small) == SELM_ERROR_BUFFER_TOO_SMALL);
static_assert(static_cast<int>(Code::context_full) == SELM_ERROR_CONTEXT_FULL);
static_assert(static_cast<int>(Code::deadline) == SELM_ERROR_DEADLINE);
static_assert(static_cast<int>(engine::Finish::deadline) == SELM_FINISH_DEADLINE);
static_assert(static_cast<int>(engine::Logits::all) == SELM_LOGITS_ALL);
static_assert(static_cast<int>(engine::KvType::f32) == SELM_KV_F32);
static_assert(static_cast<int>(engine::KvType::q8_0) == SELM_KV_Q8_0);

struct selm_model {
  std::unique_ptr<selm::model::Model> model;
  selm_tokenizer tokenizer;
};

struct selm_session {
  std::unique_ptr<engine::Session> session;
};

struct selm_adapter {
  std::unique_ptr<selm::model::Adapter> adapter;
};

struct selm_generation {
  std::unique_ptr<engine::Generation> generation;
};

namespace {

// A struct of a caller that may have been built against a newer header, which is longer. Fields
// that this library does not know must then be zero, so that none is ignored in silence.
template <class T>
Status read_options(const T* given, T* options) {
  if (given == nullptr) return {};
  if (given->struct_size < sizeof(T)) {
    return selm::error(Code::invalid_argument, "struct_size is %zu, not %zu: begin with the _INIT macro",
                       given->struct_size, sizeof(T));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (std::any_of(bytes + sizeof(T), bytes + given->struct_size, [](unsigned char b) { return b != 0; })) {
    return selm::error(Code::unsupported, "an option of a newer selm.h is set; this library is %s",
                       SELM_VERSION);
  }
  std::memcpy(options, given, sizeof(T));
  return {};
}

// The same for what is handed out.
template <class T>
selm_status write_struct(const T& values, T* out) {
  if (out->struct_size < sizeof(T)) {
    return report(selm::error(Code::invalid_argument,
                              "struct_size is %zu, not %zu: set it to the struct's size", out->struct_size,
                              sizeof(T)));
  }
  std::memcpy(reinterpret_cast<char*>(out) + sizeof(size_t),
              reinterpret_cast<const char*>(&values) + sizeof(size_t), sizeof(T) - sizeof(size_t));
  return SELM_OK;
}

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

Result<engine::Sampling> sampling_options(const selm_sampling* given) {
  selm_sampling s = SELM_SAMPLING_INIT;
  SELM_TRY(read_options(given, &s));
  engine::Sampling out;
  out.temperature = s.temperature;
  out.top_k = s.top_k;
  out.top_p = s.top_p;
  out.min_p = s.min_p;
  out.typical_p = s.typical_p;
  out.repeat_penalty = s.repeat_penalty;
  out.frequency_penalty = s.frequency_penalty;
  out.presence_penalty = s.presence_penalty;
  out.penalty_last_n = s.penalty_last_n;
  out.seed = s.seed;
  for (size_t i = 0; s.bias != nullptr && i < s.n_bias; ++i) {
    out.bias.emplace_back(s.bias[i].token, s.bias[i].bias);
  }
  SELM_TRY(out.check());
  return out;
}

Result<engine::GenerationOptions> generation_options(const selm_generation_options* given) {
  selm_generation_options o = SELM_GENERATION_OPTIONS_INIT;
  SELM_TRY(read_options(given, &o));
  if (o.draft > SELM_DRAFT_CALIBRATED)
    return selm::error(Code::invalid_argument, "unknown draft %d", o.draft);
  engine::GenerationOptions out{o.max_tokens,     {},
                                o.ignore_end,     o.special,
                                o.reuse_prefix,   static_cast<engine::Draft>(o.draft),
                                o.exit_threshold, o.grammar != nullptr ? o.grammar->constraint : nullptr};
  for (size_t i = 0; o.stop != nullptr && i < o.n_stop; ++i) {
    if (o.stop[i] == nullptr) return selm::error(Code::invalid_argument, "a stop string is NULL");
    out.stop.emplace_back(o.stop[i]);
  }
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

/* ---- Generation ---- */

selm_status selm_sample(const selm_sampling* sampling, const float* logits, size_t n_vocab,
                        const selm_token* history, size_t n_history, uint64_t draw, selm_token* token) {
  if (logits == nullptr || n_vocab == 0 || token == nullptr || (history == nullptr && n_history > 0)) {
    return invalid("logits, history and token must not be NULL");
  }
  auto options = sampling_options(sampling);
  if (!options.ok()) return report(options.status());
  engine::Sampler sampler(std::move(options.value()));
  const auto picked = sampler.pick(std::span(logits, n_vocab), std::span(history, n_history), draw);
  if (!picked.ok()) return report(picked.status());
  *token = picked.value();
  return SELM_OK;
}

selm_status selm_generation_create(selm_session* session, const selm_token* prompt, size_t n_prompt,
                                   const selm_sampling* sampling, const selm_generation_options* options,
                                   selm_generation** generation) {
  if (session == nullptr || prompt == nullptr || generation == nullptr) return invalid("an argument is NULL");
  *generation = nullptr;
  auto picking = sampling_options(sampling);
  if (!picking.ok()) return report(picking.status());
  auto wanted = generation_options(options);
  if (!wanted.ok()) return report(wanted.status());
  auto created = engine::Generation::create(*session->session, std::span(prompt, n_prompt),
                                            std::move(picking.value()), std::move(wanted.value()));
  if (!created.ok()) return report(created.status());
  *generation = new selm_generation{std::move(created.value())};
  return SELM_OK;
}

selm_status selm_generation_next(selm_generation* generation, const char** text, size_t* length,
                                 selm_token* token, selm_finish* finish) {
  if (generation == nullptr || text == nullptr || length == nullptr || finish == nullptr) {
    return invalid("an argument is NULL");
  }
  const auto step = generation->generation->next();
  if (!step.ok()) return report(step.status());
  *text = step.value().text.data();
  *length = step.value().text.size();
  if (token != nullptr) *token = step.value().token;
  *finish = static_cast<selm_finish>(step.value().finish);
  return SELM_OK;
}

selm_status selm_generation_get_stats(const selm_generation* generation, selm_generation_stats* stats) {
  if (generation == nullptr || stats == nullptr) return invalid("an argument is NULL");
  const engine::GenerationStats& s = generation->generation->stats();
  return write_struct(selm_generation_stats{sizeof(selm_generation_stats), s.prompt_tokens, s.cached_tokens,
                                            s.tokens, s.prompt_seconds, s.decode_seconds,
                                            s.first_token_seconds, static_cast<selm_finish>(s.finish),
                                            s.decode_steps, s.drafted, s.accepted, s.early, s.early_wrong},
                      stats);
}

void selm_generation_free(selm_generation* generation) { delete generation; }

/* ---- Measuring and testing ---- */

selm_status selm_measure_bandwidth(uint32_t threads, double* gb_per_second) {
  if (gb_per_second == nullptr) return invalid("gb_per_second must not be NULL");
  const auto measured =
      selm::api::measure_bandwidth(threads == 0 ? selm::usable_cores() : std::min(threads, 512u));
  if (!measured.ok()) return report(measured.status());
  *gb_per_second = measured.value();
  return SELM_OK;
}

namespace {

// A block type by id, with data that holds rows of n elements.
Result<selm::quant::Type> checked_type(uint32_t type, size_t size, size_t rows, size_t n) {
  const selm::quant::TypeInfo* info = selm::quant::type_info(type);
  if (info == nullptr) return selm::error(Code::unsupported, "%u is not a block type of this core", type);
  if (n % info->block_size != 0) {
    return selm::error(Code::invalid_argument, "%zu is not a multiple of the block of %u", n,
                       info->block_size);
  }
  size_t bytes = 0;
  if (!selm::checked_mul(n / info->block_size, size_t{info->block_bytes}, &bytes) ||
      !selm::checked_mul(bytes, rows, &bytes) || bytes > size) {
    return selm::error(Code::invalid_argument, "the data is shorter than its shape");
  }
  return static_cast<selm::quant::Type>(type);
}

}  // namespace

selm_status selm_dequantize(uint32_t type, const void* data, size_t size, float* out, size_t n) {
  if (data == nullptr || out == nullptr) return invalid("data and out must not be NULL");
  const auto checked = checked_type(type, size, 1, n);
  if (!checked.ok()) return report(checked.status());
  selm::quant::dequantize_row(checked.value(), static_cast<const std::byte*>(data), out, n);
  return SELM_OK;
}

selm_status selm_matmul(const char* isa, uint32_t type, const void* weights, size_t size, size_t rows,
                        size_t n, const float* activations, size_t columns, float* out) {
  if (weights == nullptr || activations == nullptr || out == nullptr) return invalid("an argument is NULL");
  const auto table = choose_kernels(isa);
  if (!table.ok()) return report(table.status());
  const auto checked = checked_type(type, size, rows, n);
  if (!checked.ok()) return report(checked.status());
  const auto [format, matmul] =
      kernels::method(*table.value(), checked.value(), columns >= kernels::kBatchColumns);
  const size_t stride = kernels::act_row_bytes(format, n);
  size_t bytes = 0;
  if (!selm::checked_mul(stride, columns, &bytes)) return invalid("too many columns");
  auto acts = selm::AlignedBuffer::make(bytes);
  if (!acts) return report(selm::error(Code::out_of_memory, "no memory for the activations"));
  for (size_t c = 0; c < columns; ++c) {
    table.value()->quantize_row(format, activations + c * n, n, acts->data() + c * stride);
  }
  matmul(checked.value(), static_cast<const std::byte*>(weights), rows, n, acts->data(), columns, out, rows);
  return SELM_OK;
}
