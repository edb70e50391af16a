#include "model/calibration.h"

#include <cmath>

#include "base/sha256.h"
#include "gguf/cursor.h"

namespace selm::model {

std::string weights_sha256(const gguf::File& file, const gguf::File* adapter) {
  Sha256 hash;
  const std::byte zero{0};
  for (const gguf::File* one : {&file, adapter}) {
    if (one == nullptr) continue;
    for (const gguf::Tensor& tensor : one->tensors()) {
      hash.update(std::as_bytes(std::span(tensor.name)));
      hash.update({&zero, 1});
      hash.update({tensor.data, static_cast<size_t>(tensor.size)});
    }
  }
  return hash.finish();
}

Result<Calibration> read_calibration(const Model& model, const Adapter* adapter) {
  const gguf::File& file = adapter == nullptr ? model.file() : adapter->file();
  const size_t exits = model.hparams().selm.exits.size();
  const auto key = [&](const char* name) { return model.hparams().arch_name + ".exit." + name; };
  if (exits == 0) return error(Code::invalid_argument, "the model has no trained exits to speak through");
  const auto missing = [&](const char* name) {
    return error(Code::invalid_argument, "the model's exits are not calibrated%s: %s is missing",
                 adapter == nullptr ? "" : " with this adapter", key(name).c_str());
  };

  Calibration found;
  const gguf::Entry* thresholds = file.find(key("thresholds"));
  if (thresholds == nullptr) return missing("thresholds");
  if (!thresholds->is_array || thresholds->type != gguf::ValueType::f32 || thresholds->count != exits) {
    return error(Code::invalid_argument, "%s must be an array of %zu numbers of 32 bits, one for each exit",
                 key("thresholds").c_str(), exits);
  }
  for (size_t i = 0; i < exits; ++i) {
    found.thresholds.push_back(static_cast<float>(file.float_at(*thresholds, i)));
    if (!(found.thresholds.back() > 0.0f)) {
      return error(Code::invalid_argument, "%s holds %g; a threshold is more than 0",
                   key("thresholds").c_str(), static_cast<double>(found.thresholds.back()));
    }
  }
  for (const auto& [name, value] : {std::pair{"delta", &found.delta}, std::pair{"epsilon", &found.epsilon}}) {
    SELM_ASSIGN(const auto read, file.get_float(key(name)));
    if (!read) return missing(name);
    if (!(*read > 0.0 && *read < 1.0))
      return error(Code::invalid_argument, "%s is %g; it lies between 0 and 1", key(name).c_str(), *read);
    *value = *read;
  }
  SELM_ASSIGN(const auto prompts, file.get_uint(key("calibration_count")));
  if (!prompts || *prompts == 0) return missing("calibration_count");
  found.prompts = *prompts;
  SELM_ASSIGN(const auto made_for, file.get_string(key("model_sha256")));
  if (!made_for) return missing("model_sha256");
  const std::string weights = weights_sha256(model.file(), adapter == nullptr ? nullptr : &file);
  if (*made_for != weights) {
    return error(Code::invalid_argument,
                 "the exits were calibrated for other weights: %s is %.16s..., these have %.16s...",
                 key("model_sha256").c_str(), gguf::printable(*made_for).c_str(), weights.c_str());
  }
  return found;
}

}  // namespace selm::model
