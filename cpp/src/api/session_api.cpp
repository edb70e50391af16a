// The C API's sessions and adapters.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/handles.h"
#include "api/log.h"
#include "api/options.h"
#include "api/report.h"
#include "engine/session.h"
#include "engine/snapshot.h"
#include "gguf/cursor.h"
#include "model/adapter.h"

using selm::Code;
using selm::Result;
using selm::api::invalid;
using selm::api::read_options;
using selm::api::report;
using selm::api::tell;
using selm::api::write_struct;
namespace engine = selm::engine;

static_assert(static_cast<int>(engine::Logits::all) == SELM_LOGITS_ALL);
static_assert(static_cast<int>(engine::KvType::f32) == SELM_KV_F32);
static_assert(static_cast<int>(engine::KvType::q8_0) == SELM_KV_Q8_0);

struct selm_adapter {
  std::unique_ptr<selm::model::Adapter> adapter;
};

namespace {

struct Wanted {
  engine::SessionOptions engine;
  selm_log log;
};

Result<Wanted> session_options(const selm_session_options* given) {
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
  return Wanted{out, o.log};
}

selm_session* own(std::unique_ptr<engine::Session> session, const selm_log& log) {
  auto* handle = new selm_session{std::move(session), log};
  const engine::Session& s = *handle->session;
  tell(log, SELM_LOG_INFO, "session: context %zu, threads %u, %llu bytes of cache and scratch", s.context(),
       s.threads(), static_cast<unsigned long long>(s.allocated_bytes()));
  return handle;
}

}  // namespace

selm_status selm_session_plan(const selm_model* model, const selm_session_options* options,
                              selm_memory_plan* plan) {
  if (model == nullptr || plan == nullptr) return invalid("model and plan must not be NULL");
  const auto wanted = session_options(options);
  if (!wanted.ok()) return report(wanted.status());
  const auto planned = engine::Session::plan(*model->model, wanted.value().engine);
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
  auto created = engine::Session::create(*model->model, wanted.value().engine);
  if (!created.ok()) return report(created.status());
  *session = own(std::move(created.value()), wanted.value().log);
  return SELM_OK;
}

void selm_session_free(selm_session* session) {
  if (session != nullptr) tell(session->log, SELM_LOG_INFO, "session freed");
  delete session;
}

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

selm_status selm_session_get_info(const selm_session* session, selm_session_info* info) {
  if (session == nullptr || info == nullptr) return invalid("session and info must not be NULL");
  const engine::Session& s = *session->session;
  return write_struct(
      selm_session_info{sizeof(selm_session_info), static_cast<uint32_t>(s.context()), s.threads(),
                        static_cast<uint32_t>(s.tokens().size()), s.state_bytes()},
      info);
}

selm_status selm_session_truncate(selm_session* session, uint32_t n_tokens) {
  if (session == nullptr) return invalid("session must not be NULL");
  if (n_tokens > session->session->tokens().size())
    return invalid("the session holds fewer tokens than that");
  const size_t left = session->session->truncate(n_tokens);
  if (left < n_tokens)
    tell(session->log, SELM_LOG_INFO, "went back to %zu tokens, not %u: the state of some layers is not kept",
         left, n_tokens);
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
  auto made =
      engine::Snapshot::fork(*session->session, options == nullptr ? nullptr : &wanted.value().engine);
  if (!made.ok()) return report(made.status());
  *fork = own(std::move(made.value()), options == nullptr ? session->log : wanted.value().log);
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

selm_status selm_adapter_get_info(const selm_adapter* adapter, selm_adapter_info* info) {
  if (adapter == nullptr || info == nullptr) return invalid("adapter and info must not be NULL");
  const selm::model::Adapter& a = *adapter->adapter;
  return write_struct(selm_adapter_info{sizeof(selm_adapter_info), a.name().c_str(), a.base_sha256().c_str(),
                                        a.alpha(), a.rank(), a.bytes()},
                      info);
}

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
