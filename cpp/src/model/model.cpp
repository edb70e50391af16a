#include "model/model.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "gguf/cursor.h"
#include "model/binder.h"

namespace selm::model {
namespace {

// Rows [first, first + rows) of a matrix.
Matrix slice(const Matrix& whole, uint32_t first, uint32_t rows) {
  return {whole.data + whole.row_bytes() * first, whole.type, rows, whole.columns};
}

Vector slice(const Vector& whole, uint32_t first, uint32_t n) {
  if (whole.empty()) return {};
  const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(first);
  return Vector(begin, begin + static_cast<std::ptrdiff_t>(n));
}

// Queries, keys and values: three matrices, or one that stacks their rows (attn_qkv).
Status bind_qkv(const Binder& tensors, const gguf::File& file, const std::string& block, const Hparams& h,
                Layer* layer) {
  const uint32_t nq = layer->shape.n_head * h.d_k;
  const uint32_t nk = layer->shape.n_head_kv * h.d_k;
  const uint32_t nv = layer->shape.n_head_kv * h.d_v;
  if (file.find_tensor(block + "attn_qkv.weight") != nullptr) {
    SELM_ASSIGN(const Matrix qkv,
                tensors.matrix(block + "attn_qkv.weight", uint64_t{nq} + nk + nv, h.n_embd));
    SELM_ASSIGN(const Vector bias, tensors.optional_vector(block + "attn_qkv.bias", uint64_t{nq} + nk + nv));
    layer->q.whole = slice(qkv, 0, nq);
    layer->k.whole = slice(qkv, nq, nk);
    layer->v.whole = slice(qkv, nq + nk, nv);
    layer->q_bias = slice(bias, 0, nq);
    layer->k_bias = slice(bias, nq, nk);
    layer->v_bias = slice(bias, nq + nk, nv);
    return {};
  }
  SELM_ASSIGN(layer->q, tensors.weight(block + "attn_q.weight", nq, h.n_embd));
  SELM_ASSIGN(layer->k, tensors.weight(block + "attn_k.weight", nk, h.n_embd));
  SELM_ASSIGN(layer->v, tensors.weight(block + "attn_v.weight", nv, h.n_embd));
  SELM_ASSIGN(layer->q_bias, tensors.optional_vector(block + "attn_q.bias", nq));
  SELM_ASSIGN(layer->k_bias, tensors.optional_vector(block + "attn_k.bias", nk));
  SELM_ASSIGN(layer->v_bias, tensors.optional_vector(block + "attn_v.bias", nv));
  return {};
}

// What layers of an architecture `selm` have beside llama's.
Status bind_selm(const Binder& tensors, const std::string& block, const Hparams& h, Layer* layer) {
  if (h.selm.head_gate) {
    SELM_ASSIGN(layer->head_gate.whole,
                tensors.matrix(block + "attn_head_gate.weight", layer->shape.n_head, h.n_embd));
    SELM_ASSIGN(layer->head_gate_bias, tensors.vector(block + "attn_head_gate.bias", layer->shape.n_head));
  }
  if (layer->shape.attention != Attention::performer) return {};
  if (h.selm.feature_map != FeatureMap::elu1) {
    const uint32_t rows = projected_rows(h.selm);
    SELM_ASSIGN(layer->feature_rows, tensors.float_stack(block + "performer.projection.weight",
                                                         layer->shape.n_head_kv, rows, h.d_k));
  }
  SELM_ASSIGN(layer->far_gain, tensors.vector(block + "performer.far_gain", layer->shape.n_head));
  return {};
}

// prefix: of an expert that has the layer for itself.
Result<Layer> bind_layer(const Binder& tensors, const gguf::File& file, const Hparams& h, uint32_t index,
                         const std::string& prefix) {
  const LayerShape& shape = h.layers[index];
  const std::string block = prefix + "blk." + std::to_string(index) + ".";
  Layer layer;
  layer.index = index;
  layer.shape = shape;
  SELM_ASSIGN(layer.attn_norm, tensors.vector(block + "attn_norm.weight", h.n_embd));
  SELM_TRY(bind_qkv(tensors, file, block, h, &layer));
  if (h.selm.qk_norm) {
    SELM_ASSIGN(layer.q_norm, tensors.vector(block + "attn_q_norm.weight", h.d_k));
    SELM_ASSIGN(layer.k_norm, tensors.vector(block + "attn_k_norm.weight", h.d_k));
  }
  SELM_ASSIGN(layer.attn_output,
              tensors.weight(block + "attn_output.weight", h.n_embd, uint64_t{shape.n_head} * h.d_v));
  SELM_ASSIGN(layer.attn_output_bias, tensors.optional_vector(block + "attn_output.bias", h.n_embd));
  SELM_ASSIGN(layer.ffn_norm, tensors.vector(block + "ffn_norm.weight", h.n_embd));
  SELM_ASSIGN(layer.ffn_gate, tensors.weight(block + "ffn_gate.weight", shape.n_ff, h.n_embd));
  SELM_ASSIGN(layer.ffn_up, tensors.weight(block + "ffn_up.weight", shape.n_ff, h.n_embd));
  SELM_ASSIGN(layer.ffn_down, tensors.weight(block + "ffn_down.weight", h.n_embd, shape.n_ff));
  SELM_TRY(bind_selm(tensors, block, h, &layer));
  return layer;
}

// What an expert adds to the projections of a layer.
Status bind_deltas(const Binder& tensors, const std::string& block, Layer* layer) {
  for (size_t i = 0; i < kProjections; ++i) {
    Weight& weight = layer->weight(static_cast<Projection>(i));
    SELM_ASSIGN(weight.delta, tensors.low_rank(block + kProjectionNames[i] + ".weight", weight.whole.rows,
                                               weight.whole.columns));
  }
  return {};
}

Result<ScoreHead> bind_score(const Binder& tensors, const std::string& prefix, uint32_t n_embd) {
  ScoreHead score;
  SELM_ASSIGN(score.norm, tensors.vector(prefix + "norm.weight", n_embd));
  SELM_ASSIGN(score.norm_bias, tensors.vector(prefix + "norm.bias", n_embd));
  const uint32_t widths[] = {n_embd, kScoreWidths[0], kScoreWidths[1], kScoreWidths[2]};
  for (size_t i = 0; i < 3; ++i) {
    const std::string layer = prefix + std::to_string(i);
    SELM_ASSIGN(score.weights[i], tensors.matrix(layer + ".weight", widths[i + 1], widths[i]));
    SELM_ASSIGN(score.biases[i], tensors.vector(layer + ".bias", widths[i + 1]));
  }
  return score;
}

Status check_finite(const gguf::File& file) {
  for (const gguf::Tensor& tensor : file.tensors()) {
    if (tensor.size == 0) continue;  // a row of no elements may come 2^62 times
    const uint64_t rows = tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
    const size_t stride = quant::row_bytes(tensor.type, static_cast<size_t>(tensor.ne[0]));
    for (uint64_t row = 0; row < rows; ++row) {
      if (!quant::row_is_finite(tensor.type, tensor.data + row * stride, static_cast<size_t>(tensor.ne[0]))) {
        return error(Code::format, "at byte %llu: row %llu of the tensor %s holds a value that is not finite",
                     static_cast<unsigned long long>(tensor.offset + row * stride),
                     static_cast<unsigned long long>(row), gguf::printable(tensor.name).c_str());
      }
    }
  }
  return {};
}

}  // namespace

Status check_all_bound(const gguf::File& file, const std::vector<bool>& bound) {
  for (size_t i = 0; i < bound.size(); ++i) {
    const gguf::Tensor& tensor = file.tensors()[i];
    // Tables of rotations that old converters wrote; they are computed here.
    const bool harmless = tensor.name.find("rot_embd") != std::string_view::npos;
    if (!bound[i] && !harmless) {
      return error(Code::unsupported, "at byte %llu: the tensor %s is not one this core uses",
                   static_cast<unsigned long long>(tensor.offset), gguf::printable(tensor.name).c_str());
    }
  }
  return {};
}

Model::Model(gguf::File file, Hparams hparams, text::Tokenizer tokenizer)
    : file_(std::move(file)), hparams_(std::move(hparams)), tokenizer_(std::move(tokenizer)) {}

Result<std::unique_ptr<Model>> Model::open(gguf::File file, const Options& options) {
  SELM_ASSIGN(Hparams hparams, read_hparams(file));
  if (file.tensors().empty()) {
    return error(Code::format, "the file holds a vocabulary and no tensors; only its tokenizer can be used");
  }
  SELM_ASSIGN(text::Tokenizer tokenizer, text::Tokenizer::load(file));
  std::unique_ptr<Model> model(new Model(std::move(file), std::move(hparams), std::move(tokenizer)));
  SELM_TRY(model->bind(options));
  return model;
}

Status Model::bind(const Options& options) {
  kernels_ = options.kernels;
  std::vector<bool> bound(file_.tensors().size(), false);
  const Binder tensors(file_, &bound);
  const uint32_t n_embd = hparams_.n_embd;
  SELM_ASSIGN(token_embd_, tensors.matrix("token_embd.weight", tokenizer_.size(), n_embd));
  output_ = token_embd_;
  if (file_.find_tensor("output.weight") != nullptr) {
    SELM_ASSIGN(output_, tensors.matrix("output.weight", tokenizer_.size(), n_embd));
  }
  SELM_ASSIGN(output_norm_, tensors.vector("output_norm.weight", n_embd));
  SELM_ASSIGN(rope_factors_, tensors.optional_vector("rope_freqs.weight", hparams_.rope.n_rot / 2));
  for (const float factor : rope_factors_) {
    if (!(factor > 0.0f))
      return error(Code::format, "rope_freqs.weight holds %g; factors are positive", factor);
  }
  for (const uint32_t exit : hparams_.selm.exits) {
    SELM_ASSIGN(Vector norm, tensors.vector("exit." + std::to_string(exit) + ".norm.weight", n_embd));
    exit_norms_.push_back(std::move(norm));
  }
  SELM_TRY(bind_draft_head());
  const uint32_t own =
      hparams_.selm.full_experts ? hparams_.selm.trunk : static_cast<uint32_t>(hparams_.layers.size());
  for (uint32_t i = 0; i < own; ++i) {
    SELM_ASSIGN(Layer layer, bind_layer(tensors, file_, hparams_, i, ""));
    layers_.push_back(std::move(layer));
  }
  SELM_TRY(bind_experts(&bound));
  SELM_TRY(check_all_bound(file_, bound));
  if (options.check_weights) SELM_TRY(check_finite(file_));
  return {};
}

// Rows of the head for the tokens of draft.vocabulary, copied side by side: exits ask for them often.
Status Model::bind_draft_head() {
  draft_head_ = output_;
  const std::string key = hparams_.arch_name + ".draft.vocabulary";
  const gguf::Entry* ids = file_.find(key);
  if (hparams_.arch != Arch::selm || ids == nullptr) return {};
  if (!ids->is_array || !gguf::is_integer(ids->type) || ids->count == 0 || ids->count > output_.rows) {
    return error(Code::format, "at byte %llu: %s must be an array of token ids",
                 static_cast<unsigned long long>(ids->offset), key.c_str());
  }
  const size_t row = output_.row_bytes();
  auto rows = AlignedBuffer::make(row * static_cast<size_t>(ids->count));
  if (!rows) return error(Code::out_of_memory, "no memory for the %s", key.c_str());
  for (uint64_t i = 0; i < ids->count; ++i) {
    const int64_t id = file_.int_at(*ids, i);
    if (id < 0 || id >= int64_t{output_.rows}) {
      return error(Code::format, "%s holds the token %lld; the vocabulary has %u", key.c_str(),
                   static_cast<long long>(id), output_.rows);
    }
    std::memcpy(rows->data() + i * row, output_.data + static_cast<size_t>(id) * row, row);
    draft_tokens_.push_back(static_cast<text::Token>(id));
  }
  draft_rows_ = std::move(*rows);
  draft_head_ = {draft_rows_.data(), output_.type, static_cast<uint32_t>(ids->count), output_.columns};
  return {};
}

// The layers above the trunk, once for each expert: with its delta, or its own.
Status Model::bind_experts(std::vector<bool>* bound) {
  const Binder tensors(file_, bound);
  const Selm& selm = hparams_.selm;
  for (size_t e = 0; e < selm.experts.size(); ++e) {
    const std::string prefix = "expert." + std::to_string(e) + ".";
    Expert expert;
    for (uint32_t i = selm.trunk; i < hparams_.layers.size(); ++i) {
      if (selm.full_experts) {
        SELM_ASSIGN(Layer layer, bind_layer(tensors, file_, hparams_, i, prefix));
        expert.layers.push_back(std::move(layer));
      } else {
        expert.layers.push_back(layers_[i]);
        SELM_TRY(bind_deltas(tensors, prefix + "blk." + std::to_string(i) + ".", &expert.layers.back()));
      }
    }
    SELM_ASSIGN(expert.score, bind_score(tensors, prefix + "score.", hparams_.n_embd));
    experts_.push_back(std::move(expert));
  }
  layers_.resize(selm.trunk);
  return {};
}

uint64_t Model::n_params() const {
  uint64_t total = 0;
  for (const gguf::Tensor& t : file_.tensors()) total += t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3];
  return total;
}

uint64_t Model::weight_bytes() const {
  uint64_t total = output_.bytes();
  const auto add = [&total](const Layer& layer) {
    for (size_t i = 0; i < kProjections; ++i) total += layer.weight(static_cast<Projection>(i)).bytes();
  };
  for (const Layer& layer : layers_) add(layer);
  if (experts_.empty()) return total;
  for (const Layer& layer : experts_[0].layers) add(layer);  // one speaks
  for (const Expert& expert : experts_)
    for (const Matrix& m : expert.score.weights) total += m.bytes();
  return total;
}

}  // namespace selm::model
