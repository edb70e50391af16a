// The C API: the library, models and what their files say. Checks arguments, keeps the last message, calls
// the core.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "api/handles.h"
#include "api/log.h"
#include "api/options.h"
#include "api/report.h"
#include "base/cpu.h"
#include "base/file_bytes.h"
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
using selm::api::tell;
using selm::api::write_struct;
namespace kernels = selm::kernels;

static_assert(static_cast<int>(Code::buffer_too_small) == SELM_ERROR_BUFFER_TOO_SMALL);
static_assert(static_cast<int>(Code::context_full) == SELM_ERROR_CONTEXT_FULL);
static_assert(static_cast<int>(Code::deadline) == SELM_ERROR_DEADLINE);

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

// What was opened, and what its user may have to know of it.
void describe(const selm_model& handle) {
  const selm::model::Model& m = *handle.model;
  tell(handle.log, SELM_LOG_INFO, "model: %s, %zu layers, %.1f million parameters, %.1f MB, %s",
       m.hparams().arch_name.c_str(), m.hparams().layers.size(), static_cast<double>(m.n_params()) / 1e6,
       static_cast<double>(m.file().size()) / 1e6, m.kernels().name);
  const selm::text::Tokenizer& words = m.tokenizer();
  if (words.model() == "gpt2" && words.pre().empty())
    tell(handle.log, SELM_LOG_WARNING,
         "the file names no pre-tokenizer (tokenizer.ggml.pre): text is cut by a default, which may not be"
         " what the model learned");
  if (words.special().eos < 0 && words.special().eot < 0)
    tell(handle.log, SELM_LOG_WARNING,
         "the vocabulary has no end token: replies end by max_tokens or stop strings");
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

selm_status selm_cpu_get_info(selm_cpu_info* info) {
  if (info == nullptr) return invalid("info must not be NULL");
  const Result<const kernels::Table*> table = choose_kernels(nullptr);
  selm_cpu_info found{};
  found.isa = table.ok() ? table.value()->name : kernels::best()->name;
  size_t n = 0;
  for (const kernels::Isa isa : kernels::kAllIsas)
    if (const kernels::Table* here = kernels::table(isa)) found.available[n++] = here->name;
  static_assert(std::size(kernels::kAllIsas) < std::size(decltype(found.available){}));
  found.cores = selm::usable_cores();
  return write_struct(found, info);
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
  handle->tokenizer.name();
  handle->log = o.log;
  describe(*handle);
  *model = handle.release();
  return SELM_OK;
}

void selm_model_free(selm_model* model) {
  if (model != nullptr) tell(model->log, SELM_LOG_INFO, "model freed");
  delete model;
}

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
