// A LoRA adapter (arXiv 2106.09685) in llama.cpp's file format: general.type = "adapter", adapter.type =
// "lora", and for each weight X that it changes X.lora_a [in, rank] and X.lora_b [rank, out]: X becomes X +
// scale * alpha / rank * b a.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace selm::model {

class Adapter {
 public:
  // Errors: io, format, unsupported (a tensor that is not a projection of a layer); a tensor that does not
  // fit the model is named with both shapes.
  static Result<std::unique_ptr<Adapter>> open(const std::string& path, const Model& model);

  const LowRank& pair(uint32_t layer, Projection which) const {
    return layers_[layer][static_cast<size_t>(which)];
  }
  // What the product of the pair is multiplied with, beside the scale that is asked for.
  float scale(const LowRank& pair) const {
    return alpha_ == 0.0f ? 1.0f : alpha_ / static_cast<float>(pair.a.rows);
  }
  const Model& model() const { return *model_; }
  const gguf::File& file() const { return file_; }
  const std::string& name() const { return name_; }
  const std::string& base_sha256() const { return base_sha256_; }
  float alpha() const { return alpha_; }
  uint32_t rank() const { return rank_; }
  uint64_t bytes() const { return bytes_; }

 private:
  explicit Adapter(gguf::File file) : file_(std::move(file)) {}

  gguf::File file_;
  const Model* model_ = nullptr;
  std::string name_, base_sha256_;
  uint32_t rank_ = 0;
  uint64_t bytes_ = 0;
  float alpha_ = 0.0f;  // 0: the pairs are used as they are
  std::vector<std::array<LowRank, kProjections>> layers_;
};

}  // namespace selm::model
