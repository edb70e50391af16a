#include "model/hparams.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "gguf/cursor.h"
#include "gguf/gguf.h"

namespace selm::model {
namespace {

// Bounds that no real model comes near; they keep every later product inside 64 bits.
constexpr uint64_t kMaxLayers = 512;
constexpr uint64_t kMaxWidth = 1u << 20;
constexpr uint64_t kMaxHeads = 1024;
constexpr uint64_t kMaxHeadSize = 1u << 14;
constexpr uint64_t kMaxContext = 1u << 28;
constexpr uint64_t kMaxWindow = 1u << 20;
constexpr uint64_t kMaxSinks = 256;  // one chunk of attention
constexpr uint64_t kMaxExperts = 64;
constexpr uint64_t kMaxFeatures = 1u << 14;

// Reads keys that begin with the architecture's name.
class Reader {
 public:
  Reader(const gguf::File& file, std::string arch) : file_(file), arch_(std::move(arch)) {}

  std::string key(const char* name) const { return arch_ + "." + name; }

  Result<uint32_t> required(const char* name, uint64_t low, uint64_t high) const {
    SELM_ASSIGN(auto value, file_.get_uint(key(name)));
    if (!value) return error(Code::format, "the key %s is missing", key(name).c_str());
    return bounded(name, *value, low, high);
  }

  Result<uint32_t> optional(const char* name, uint32_t fallback, uint64_t low, uint64_t high) const {
    SELM_ASSIGN(auto value, file_.get_uint(key(name)));
    if (!value) return fallback;
    return bounded(name, *value, low, high);
  }

  Result<double> number(const char* name, double fallback, double low, double high) const {
    SELM_ASSIGN(auto value, file_.get_float(key(name)));
    const double number = value.value_or(fallback);
    if (!(number >= low && number <= high)) {  // false for NaN too
      return error(Code::format, "%s%s = %g is not between %g and %g", where(name).c_str(), key(name).c_str(),
                   number, low, high);
    }
    return number;
  }

  // A value for every layer: one number for all, or an array with one for each.
  Result<std::vector<uint32_t>> per_layer(const char* name, size_t n_layer,
                                          const std::vector<uint32_t>* fallback, uint64_t low,
                                          uint64_t high) const {
    const gguf::Entry* entry = file_.find(key(name));
    if (entry == nullptr && fallback != nullptr) return *fallback;
    if (entry == nullptr || !entry->is_array) {
      SELM_ASSIGN(const uint32_t value, required(name, low, high));
      return std::vector<uint32_t>(n_layer, value);
    }
    if (!gguf::is_integer(entry->type) || entry->count < n_layer) {
      return error(Code::format, "%sthe array %s must hold %zu integers, one for each layer",
                   where(name).c_str(), key(name).c_str(), n_layer);
    }
    std::vector<uint32_t> values;
    values.reserve(n_layer);
    for (size_t i = 0; i < n_layer; ++i) {
      const int64_t value = file_.int_at(*entry, i);
      SELM_ASSIGN(const uint32_t ok,
                  bounded(name, value < 0 ? UINT64_MAX : static_cast<uint64_t>(value), low, high));
      values.push_back(ok);
    }
    return values;
  }

 private:
  std::string where(const char* name) const {
    const gguf::Entry* entry = file_.find(key(name));
    return entry == nullptr ? "" : "at byte " + std::to_string(entry->offset) + ": ";
  }

  Result<uint32_t> bounded(const char* name, uint64_t value, uint64_t low, uint64_t high) const {
    if (value < low || value > high) {
      return error(Code::format, "%s%s = %llu is not between %llu and %llu", where(name).c_str(),
                   key(name).c_str(), static_cast<unsigned long long>(value),
                   static_cast<unsigned long long>(low), static_cast<unsigned long long>(high));
    }
    return static_cast<uint32_t>(value);
  }

  const gguf::File& file_;
  std::string arch_;
};

Result<Arch> read_arch(const gguf::File& file, std::string* name) {
  SELM_ASSIGN(auto arch, file.get_string("general.architecture"));
  if (!arch) return error(Code::format, "the key general.architecture is missing");
  *name = std::string(*arch);
  if (*arch == "llama") return Arch::llama;
  if (*arch == "qwen2") return Arch::qwen2;
  if (*arch == "qwen3") return Arch::qwen3;
  if (*arch == "selm") return Arch::selm;
  return error(Code::unsupported,
               "the architecture '%s' is not one this core runs (llama, qwen2, qwen3, selm)",
               gguf::printable(*name).c_str());
}

Result<Rope> read_rope(const gguf::File& file, const Reader& keys, const Hparams& h) {
  Rope rope;
  rope.neox = h.arch != Arch::llama;
  SELM_ASSIGN(rope.n_rot, keys.optional("rope.dimension_count", h.d_k, 0, h.d_k));
  if (rope.n_rot % 2 != 0) {
    return error(Code::format, "%s = %u is odd; RoPE turns pairs", keys.key("rope.dimension_count").c_str(),
                 rope.n_rot);
  }
  SELM_ASSIGN(rope.base, keys.number("rope.freq_base", 10000.0, 1.001, 1e12));

  SELM_ASSIGN(auto type, file.get_string(keys.key("rope.scaling.type")));
  // Files from before rope.scaling.* said only rope.scale_linear.
  SELM_ASSIGN(const double old_factor, keys.number("rope.scale_linear", 1.0, 1e-6, 1e6));
  SELM_ASSIGN(rope.factor, keys.number("rope.scaling.factor", old_factor, 0.0, 1e6));
  if (rope.factor == 0.0) rope.factor = 1.0;  // the reference reads 0 as "not scaled"
  if (type ? *type == "linear" : rope.factor != 1.0) {
    rope.scaling = RopeScaling::linear;
  } else if (!type || *type == "none") {
    rope.factor = 1.0;
  } else if (*type == "yarn") {
    rope.scaling = RopeScaling::yarn;
  } else {
    return error(Code::unsupported, "the RoPE scaling '%s' is not one this core runs (none, linear, yarn)",
                 gguf::printable(*type).c_str());
  }
  SELM_ASSIGN(rope.attention_factor, keys.number("rope.scaling.attn_factor", 1.0, 1e-6, 1e6));
  if (rope.scaling == RopeScaling::yarn) {
    SELM_ASSIGN(rope.original_context,
                keys.optional("rope.scaling.original_context_length", h.n_ctx_train, 1, kMaxContext));
    SELM_ASSIGN(rope.extrapolation, keys.number("rope.scaling.yarn_ext_factor", 1.0, -1.0, 1e3));
    if (rope.extrapolation < 0.0) rope.extrapolation = 1.0;
    SELM_ASSIGN(rope.attention_factor,
                keys.number("rope.scaling.yarn_attn_factor", rope.attention_factor, 1e-6, 1e6));
    SELM_ASSIGN(rope.beta_fast, keys.number("rope.scaling.yarn_beta_fast", 32.0, 1e-6, 1e6));
    SELM_ASSIGN(rope.beta_slow, keys.number("rope.scaling.yarn_beta_slow", 1.0, 1e-6, 1e6));
  }
  return rope;
}

Status read_layers(const Reader& keys, Hparams* h) {
  SELM_ASSIGN(const uint32_t n_layer, keys.required("block_count", 1, kMaxLayers));
  SELM_ASSIGN(const auto heads, keys.per_layer("attention.head_count", n_layer, nullptr, 1, kMaxHeads));
  SELM_ASSIGN(const auto heads_kv, keys.per_layer("attention.head_count_kv", n_layer, &heads, 1, kMaxHeads));
  SELM_ASSIGN(const auto n_ff, keys.per_layer("feed_forward_length", n_layer, nullptr, 1, kMaxWidth));
  for (uint32_t i = 0; i < n_layer; ++i) {
    if (heads[i] % heads_kv[i] != 0) {
      return error(Code::format, "layer %u has %u heads, not a multiple of its %u key/value heads", i,
                   heads[i], heads_kv[i]);
    }
    h->layers.push_back({heads[i], heads_kv[i], n_ff[i]});
  }
  // Without key_length the heads share the width evenly, which needs one head count for all.
  uint32_t d_head = 0;
  if (h->n_embd % heads[0] == 0) d_head = h->n_embd / heads[0];
  SELM_ASSIGN(h->d_k, keys.optional("attention.key_length", d_head, 1, kMaxHeadSize));
  SELM_ASSIGN(h->d_v, keys.optional("attention.value_length", d_head, 1, kMaxHeadSize));
  if (h->d_k == 0 || h->d_v == 0) {
    return error(Code::format, "%s = %u does not divide %s = %u", keys.key("attention.head_count").c_str(),
                 heads[0], keys.key("embedding_length").c_str(), h->n_embd);
  }
  if (h->d_k > kMaxHeadSize || h->d_v > kMaxHeadSize) {
    return error(Code::format, "heads of %u elements; the most is %llu", std::max(h->d_k, h->d_v),
                 static_cast<unsigned long long>(kMaxHeadSize));
  }
  return {};
}

// One name for each layer.
Status read_attention(const gguf::File& file, const Reader& keys, Hparams* h) {
  const std::string key = keys.key("attention.kinds");
  const gguf::Entry* kinds = file.find(key);
  if (kinds == nullptr) return error(Code::format, "the key %s is missing", key.c_str());
  if (!kinds->is_array || kinds->type != gguf::ValueType::string || kinds->count != h->layers.size()) {
    return error(Code::format, "at byte %llu: %s must hold %zu strings, one for each layer",
                 static_cast<unsigned long long>(kinds->offset), key.c_str(), h->layers.size());
  }
  for (size_t i = 0; i < h->layers.size(); ++i) {
    const std::string_view kind = file.string(*kinds, i);
    if (kind == "softmax") {
      h->layers[i].attention = Attention::softmax;
    } else if (kind == "window") {
      h->layers[i].attention = Attention::window;
    } else if (kind == "performer") {
      h->layers[i].attention = Attention::performer;
    } else {
      return error(Code::format, "%s: layer %zu is '%s', which is none of softmax, window, performer",
                   key.c_str(), i, gguf::printable(kind).c_str());
    }
  }
  return {};
}

Result<FeatureMap> read_feature_map(const gguf::File& file, const Reader& keys) {
  const std::string key = keys.key("performer.feature_map");
  SELM_ASSIGN(const auto name, file.get_string(key));
  if (!name || *name == "favor+") return FeatureMap::favor;
  if (*name == "elu1") return FeatureMap::elu1;
  if (*name == "relu") return FeatureMap::relu;
  if (*name == "hedgehog") return FeatureMap::hedgehog;
  return error(Code::unsupported, "%s = '%s' is none of favor+, elu1, relu, hedgehog", key.c_str(),
               gguf::printable(*name).c_str());
}

Status read_exits(const gguf::File& file, const Reader& keys, size_t n_layer, std::vector<uint32_t>* exits) {
  if (file.find(keys.key("exit.layers")) == nullptr) return {};
  const gguf::Entry& entry = *file.find(keys.key("exit.layers"));
  if (!entry.is_array || !gguf::is_integer(entry.type) || entry.count > n_layer) {
    return error(Code::format, "at byte %llu: %s must be an array of layers",
                 static_cast<unsigned long long>(entry.offset), keys.key("exit.layers").c_str());
  }
  for (size_t i = 0; i < entry.count; ++i) {
    const int64_t layer = file.int_at(entry, i);
    const int64_t last = exits->empty() ? 0 : int64_t{exits->back()};
    if (layer <= last || layer >= static_cast<int64_t>(n_layer)) {
      return error(Code::format, "%s holds %lld: layers rise from 1 and stay below the last, %zu",
                   keys.key("exit.layers").c_str(), static_cast<long long>(layer), n_layer);
    }
    exits->push_back(static_cast<uint32_t>(layer));
  }
  return {};
}

// One of two words.
Result<bool> read_choice(const gguf::File& file, const std::string& key, const char* no, const char* yes) {
  SELM_ASSIGN(const auto word, file.get_string(key));
  if (!word) return error(Code::format, "the key %s is missing", key.c_str());
  if (*word == yes) return true;
  if (*word == no) return false;
  return error(Code::unsupported, "%s = '%s' is neither %s nor %s", key.c_str(),
               gguf::printable(*word).c_str(), no, yes);
}

Status read_experts(const gguf::File& file, const Reader& keys, size_t n_layer, Selm* selm) {
  const gguf::Entry* names = file.find(keys.key("expert.names"));
  if (names == nullptr) return {};
  if (!names->is_array || names->type != gguf::ValueType::string || names->count == 0 ||
      names->count > kMaxExperts) {
    return error(Code::format, "at byte %llu: %s must hold 1 to %llu names",
                 static_cast<unsigned long long>(names->offset), keys.key("expert.names").c_str(),
                 static_cast<unsigned long long>(kMaxExperts));
  }
  for (size_t i = 0; i < names->count; ++i) selm->experts.emplace_back(file.string(*names, i));
  SELM_ASSIGN(selm->trunk, keys.required("expert.trunk_layers", 0, n_layer - 1));
  SELM_ASSIGN(selm->full_experts, read_choice(file, keys.key("expert.kind"), "delta", "full"));
  SELM_ASSIGN(selm->full_route, read_choice(file, keys.key("expert.route"), "early", "full"));
  SELM_ASSIGN(const double stickiness, keys.number("expert.stickiness", 0.0, 0.0, 1e6));
  selm->stickiness = static_cast<float>(stickiness);
  if (!selm->exits.empty() && selm->exits.back() > selm->trunk) {
    return error(Code::format, "an exit after layer %u lies above the trunk of %u", selm->exits.back(),
                 selm->trunk);
  }
  return {};
}

Status read_selm(const gguf::File& file, const Reader& keys, Hparams* h) {
  Selm& selm = h->selm;
  SELM_TRY(read_attention(file, keys, h));
  const auto has = [h](Attention kind) {
    return std::any_of(h->layers.begin(), h->layers.end(),
                       [kind](const LayerShape& layer) { return layer.attention == kind; });
  };
  if (has(Attention::window) || has(Attention::performer)) {
    SELM_ASSIGN(selm.window, keys.required("attention.window", 1, kMaxWindow));
    SELM_ASSIGN(selm.sinks, keys.optional("attention.sinks", 0, 0, kMaxSinks));
  }
  if (has(Attention::performer)) {
    SELM_ASSIGN(selm.features, keys.required("performer.features", 1, kMaxFeatures));
    SELM_ASSIGN(selm.feature_map, read_feature_map(file, keys));
    SELM_ASSIGN(const double clamp, keys.number("performer.clamp", 1.0, 1e-6, 1e6));
    selm.clamp = static_cast<float>(clamp);
    if (selm.feature_map == FeatureMap::elu1 && selm.features != h->d_k) {
      return error(Code::format, "elu1 has as many features as a head has elements, %u, not %u", h->d_k,
                   selm.features);
    }
    if (selm.feature_map == FeatureMap::hedgehog && selm.features % 2 != 0) {
      return error(Code::format, "hedgehog has an even number of features, not %u", selm.features);
    }
  }
  SELM_ASSIGN(const auto gate, file.get_bool(keys.key("attention.head_gate")));
  SELM_ASSIGN(const auto norm, file.get_bool(keys.key("attention.qk_norm")));
  selm.head_gate = gate.value_or(false);
  selm.qk_norm = norm.value_or(false);
  SELM_TRY(read_exits(file, keys, h->layers.size(), &selm.exits));
  return read_experts(file, keys, h->layers.size(), &selm);
}

}  // namespace

Result<Hparams> read_hparams(const gguf::File& file) {
  Hparams h;
  SELM_ASSIGN(h.arch, read_arch(file, &h.arch_name));
  const Reader keys(file, h.arch_name);
  SELM_ASSIGN(h.n_embd, keys.required("embedding_length", 1, kMaxWidth));
  SELM_ASSIGN(h.n_ctx_train, keys.required("context_length", 1, kMaxContext));
  SELM_ASSIGN(const uint32_t n_expert, keys.optional("expert_count", 0, 0, UINT32_MAX));
  if (n_expert > 0) {
    return error(Code::unsupported, "%s = %u: mixtures of experts are not run by this core",
                 keys.key("expert_count").c_str(), n_expert);
  }
  SELM_TRY(read_layers(keys, &h));
  SELM_ASSIGN(const double eps, keys.number("attention.layer_norm_rms_epsilon", 1e-5, 1e-20, 1.0));
  h.rms_eps = static_cast<float>(eps);
  SELM_ASSIGN(h.rope, read_rope(file, keys, h));
  h.selm.qk_norm = h.arch == Arch::qwen3;
  h.selm.trunk = static_cast<uint32_t>(h.layers.size());
  if (h.arch == Arch::selm) SELM_TRY(read_selm(file, keys, &h));
  return h;
}

}  // namespace selm::model
