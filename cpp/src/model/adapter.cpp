#include "model/adapter.h"

#include <algorithm>

#include "model/binder.h"

namespace selm::model {
namespace {

// The key's value must be this.
Status expect(const gguf::File& file, const char* key, const std::string& wanted, const char* what) {
  SELM_ASSIGN(const auto value, file.get_string(key));
  if (value && *value == wanted) return {};
  return error(Code::format, "%s is '%s', not '%s': %s", key,
               value ? gguf::printable(*value).c_str() : "not there", wanted.c_str(), what);
}

}  // namespace

Result<std::unique_ptr<Adapter>> Adapter::open(const std::string& path, const Model& model) {
  SELM_ASSIGN(gguf::File opened, gguf::File::open(path));
  std::unique_ptr<Adapter> adapter(new Adapter(std::move(opened)));
  const gguf::File& file = adapter->file_;
  SELM_TRY(expect(file, "general.type", "adapter", "the file is not an adapter"));
  SELM_TRY(expect(file, "adapter.type", "lora", "only LoRA adapters are run"));
  SELM_TRY(
      expect(file, "general.architecture", model.hparams().arch_name, "the adapter is for another base"));
  SELM_ASSIGN(const auto alpha, file.get_float("adapter.lora.alpha"));
  adapter->alpha_ = static_cast<float>(alpha.value_or(0.0));
  adapter->model_ = &model;
  SELM_ASSIGN(const auto name, file.get_string("general.name"));
  SELM_ASSIGN(const auto base, file.get_string("selm.adapter.base_sha256"));
  if (name) adapter->name_ = gguf::printable(*name);
  if (base) adapter->base_sha256_ = gguf::printable(*base);

  std::vector<bool> bound(file.tensors().size(), false);
  const Binder tensors(file, &bound);
  const auto bind = [&](const Layer& layer) -> Status {
    adapter->layers_.emplace_back();
    for (size_t i = 0; i < kProjections; ++i) {
      const Matrix& whole = layer.weight(static_cast<Projection>(i)).whole;
      const std::string name = "blk." + std::to_string(layer.index) + "." + kProjectionNames[i] + ".weight";
      SELM_ASSIGN(adapter->layers_.back()[i], tensors.low_rank(name, whole.rows, whole.columns));
      adapter->rank_ = std::max(adapter->rank_, adapter->layers_.back()[i].a.rows);
      adapter->bytes_ += adapter->layers_.back()[i].bytes();
      if (adapter->layers_.back()[i].a.rows > model.hparams().n_embd) {
        return error(Code::unsupported, "the tensor %s.lora_a has a rank of more than the model's width, %u",
                     name.c_str(), model.hparams().n_embd);
      }
    }
    return {};
  };
  for (const Layer& layer : model.trunk()) SELM_TRY(bind(layer));
  if (!model.experts().empty())
    for (const Layer& layer : model.experts()[0].layers) SELM_TRY(bind(layer));
  SELM_TRY(check_all_bound(file, bound));
  if (file.tensors().empty()) return error(Code::format, "the adapter holds no tensors");
  return adapter;
}

}  // namespace selm::model
