// An open model: hyper-parameters, vocabulary, and where each weight lies in the mapped file.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "base/status.h"
#include "gguf/gguf.h"
#include "kernels/kernels.h"
#include "model/hparams.h"
#include "quant/types.h"
#include "text/tokenizer.h"

namespace selm::model {

// A weight matrix [rows, columns], row-major in the file's own block layout; not owned.
struct Matrix {
  const std::byte* data = nullptr;
  quant::Type type = quant::Type::f32;
  uint32_t rows = 0;
  uint32_t columns = 0;

  size_t row_bytes() const { return quant::row_bytes(type, columns); }
  size_t bytes() const { return row_bytes() * rows; }
};

// A product b a of low rank: [rank, columns], [rows, rank]; or nothing.
struct LowRank {
  Matrix a, b;

  explicit operator bool() const { return a.data != nullptr; }
  size_t bytes() const { return *this ? a.bytes() + b.bytes() : 0; }
};

// What multiplies: a matrix or two factors in its place, and what an expert adds to it.
struct Weight {
  Matrix whole;  // rows and columns always; no data where there are factors
  LowRank factors, delta;

  size_t bytes() const { return (factors ? factors.bytes() : whole.bytes()) + delta.bytes(); }
};

// Norms and biases: small, so copied to floats. Empty where the file has none.
using Vector = std::vector<float>;

// The weights of a layer that multiply its stream; adapters may add to them.
enum class Projection { q, k, v, attn_output, ffn_gate, ffn_up, ffn_down };
inline constexpr size_t kProjections = 7;
inline constexpr const char* kProjectionNames[kProjections] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                               "ffn_gate", "ffn_up", "ffn_down"};

struct Layer {
  uint32_t index = 0;  // among all layers, the trunk's included
  LayerShape shape;
  Vector attn_norm;
  Weight q, k, v;  // [n_head * d_k | n_head_kv * d_k | n_head_kv * d_v, n_embd]
  Vector q_bias, k_bias, v_bias;
  Vector q_norm, k_norm;  // per head [d_k]; qwen3, selm
  Weight attn_output;     // [n_embd, n_head * d_v]
  Vector attn_output_bias;
  Vector ffn_norm;
  Weight ffn_gate, ffn_up;  // [n_ff, n_embd]
  Weight ffn_down;          // [n_embd, n_ff]
  // selm
  Weight head_gate;  // [n_head, n_embd] or nothing
  Vector head_gate_bias;
  Matrix feature_rows;  // of performer layers: [n_head_kv * projected_rows(), d_k], F32; elu1: nothing
  Vector far_gain;      // [n_head]

  const Weight& weight(Projection which) const {
    const Weight* const all[kProjections] = {&q, &k, &v, &attn_output, &ffn_gate, &ffn_up, &ffn_down};
    return *all[static_cast<size_t>(which)];
  }
  Weight& weight(Projection which) { return const_cast<Weight&>(std::as_const(*this).weight(which)); }
};

// How well an expert will do on the next token: an MLP of a normalised hidden state.
inline constexpr uint32_t kScoreWidths[] = {256, 128, 1};
struct ScoreHead {
  Vector norm, norm_bias;
  std::array<Matrix, 3> weights;  // [256, n_embd], [128, 256], [1, 128]
  std::array<Vector, 3> biases;
};

struct Expert {
  std::vector<Layer> layers;  // those above the trunk
  ScoreHead score;
};

class Model {
 public:
  struct Options {
    const kernels::Table* kernels = nullptr;  // required
    bool check_weights = false;               // also look for scales that are not finite
  };
  static Result<std::unique_ptr<Model>> open(gguf::File file, const Options& options);

  const gguf::File& file() const { return file_; }
  const Hparams& hparams() const { return hparams_; }
  const text::Tokenizer& tokenizer() const { return tokenizer_; }
  const kernels::Table& kernels() const { return *kernels_; }
  uint32_t n_vocab() const { return token_embd_.rows; }
  uint64_t n_params() const;
  uint64_t weight_bytes() const;  // read for each decoded token

  const Matrix& token_embd() const { return token_embd_; }  // [n_vocab, n_embd]
  const Matrix& output() const { return output_; }          // [n_vocab, n_embd]; token_embd where tied
  const Vector& output_norm() const { return output_norm_; }
  const Vector& rope_factors() const { return rope_factors_; }  // [n_rot / 2] or empty
  std::span<const Layer> trunk() const { return layers_; }      // all layers where there are no experts
  const std::vector<Expert>& experts() const { return experts_; }
  // What drafts are chosen from: the whole head, or rows of it and whose they are.
  const Matrix& draft_head() const { return draft_head_; }
  const std::vector<text::Token>& draft_tokens() const { return draft_tokens_; }
  const std::vector<Vector>& exit_norms() const { return exit_norms_; }  // as hparams().selm.exits

 private:
  Model(gguf::File file, Hparams hparams, text::Tokenizer tokenizer);
  Status bind(const Options& options);
  Status bind_draft_head();
  Status bind_experts(std::vector<bool>* bound);

  gguf::File file_;
  Hparams hparams_;
  text::Tokenizer tokenizer_;
  const kernels::Table* kernels_ = nullptr;
  Matrix token_embd_, output_;
  Vector output_norm_, rope_factors_;
  std::vector<Layer> layers_;
  std::vector<Expert> experts_;
  std::vector<Vector> exit_norms_;
  Matrix draft_head_;
  std::vector<text::Token> draft_tokens_;
  AlignedBuffer draft_rows_;
};

}  // namespace selm::model
