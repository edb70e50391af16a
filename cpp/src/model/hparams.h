// The numbers that shape a model, read from the metadata and checked against each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace selm::gguf {
class File;
}

namespace selm::model {

enum class Arch { llama, qwen2, qwen3, selm };

enum class RopeScaling { none, linear, yarn };

struct Rope {
  uint32_t n_rot = 0;  // leading elements of a head that turn; even
  bool neox = false;   // pairs (i, i + n_rot/2); otherwise (2i, 2i + 1)
  double base = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;            // context grows by this much
  double attention_factor = 1.0;  // multiplies cos and sin
  // YaRN (arXiv 2309.00071)
  double extrapolation = 1.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  uint32_t original_context = 0;
};

// What a layer's queries see: everything; the first tokens and the last ones; or all others too,
// through features of the keys (docs/selm-format.md).
enum class Attention { softmax, window, performer };

struct LayerShape {
  uint32_t n_head = 0;
  uint32_t n_head_kv = 0;  // divides n_head
  uint32_t n_ff = 0;
  Attention attention = Attention::softmax;
};

enum class FeatureMap { favor, elu1, relu, hedgehog };

// The keys of an architecture `selm` beyond llama's; of the others, what they mean there.
struct Selm {
  uint32_t window = 0;    // last tokens that are seen exactly, a query's own included
  uint32_t sinks = 0;     // first tokens that are
  uint32_t features = 0;  // for each KV head
  FeatureMap feature_map = FeatureMap::favor;
  float clamp = 1.0f;  // the longest a scaled query or key may be before the feature map
  bool head_gate = false;
  bool qk_norm = false;              // queries and keys are normalised per head
  std::vector<uint32_t> exits;       // layers, counted from 1, after which the shared head may speak
  std::vector<std::string> experts;  // names; empty: all layers are the trunk
  uint32_t trunk = 0;                // layers that all experts share
  bool full_experts = false;         // layers of their own, not deltas
  bool full_route = false;           // scored by what they make of a token, not by the trunk
  float stickiness = 0.0f;
};

// Rows of a KV head's projection: hedgehog has a feature for each sign of one.
inline uint32_t projected_rows(const Selm& selm) {
  if (selm.feature_map == FeatureMap::elu1) return 0;
  return selm.feature_map == FeatureMap::hedgehog ? selm.features / 2 : selm.features;
}

struct Hparams {
  Arch arch = Arch::llama;
  std::string arch_name;
  uint32_t n_embd = 0;
  uint32_t n_ctx_train = 0;
  uint32_t d_k = 0;  // elements of a key (and query) head
  uint32_t d_v = 0;  // elements of a value head
  float rms_eps = 1e-5f;
  Rope rope;
  Selm selm;
  std::vector<LayerShape> layers;
};

// Errors: format (missing key, wrong type, contradiction), unsupported (another architecture,
// a mixture of experts, an unknown RoPE scaling).
Result<Hparams> read_hparams(const gguf::File& file);

}  // namespace selm::model
