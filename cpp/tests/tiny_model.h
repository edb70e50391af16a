// A tiny random model in memory or on disk, for tests of the engine and of the C API.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "gguf_builder.h"
#include "selm/selm.h"

namespace selm::test {

struct TinyShape {
  std::string arch = "qwen2";
  uint32_t n_layer = 2, n_embd = 64, n_head = 4, n_head_kv = 2, n_ff = 96, context = 64;
  uint32_t d_head = 16;
  std::vector<std::string> attention;            // selm: a kind for each layer
  uint32_t window = 5, sinks = 3, features = 8;  // selm
  std::vector<uint32_t> exits;                   // selm
  uint32_t matrix_type = 0;  // of the matrices inside the layers: F32 0, F16 1, Q4_0 2, Q8_0 8, Q4_K 12
};

// 256 byte tokens, a few merges, and <|im_end|> as the end token.
inline void add_vocabulary(GgufBuilder& file) {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  // GPT-2's printable letter for each byte: itself where printable, else 256 and up.
  const auto utf8 = [](uint32_t c) {
    std::string s;
    if (c < 0x80) {
      s += static_cast<char>(c);
    } else {
      s += static_cast<char>(0xC0 | (c >> 6));
      s += static_cast<char>(0x80 | (c & 0x3F));
    }
    return s;
  };
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    tokens.push_back(utf8(printable ? b : next++));
    types.push_back(1);
  }
  for (const char* merged : {"he", "ll", "hell", "hello"}) {
    tokens.push_back(merged);
    types.push_back(1);
  }
  tokens.push_back("<|im_end|>");
  types.push_back(3);
  file.set("tokenizer.ggml.model", "gpt2");
  file.set("tokenizer.ggml.pre", "qwen2");
  file.set_array("tokenizer.ggml.tokens", tokens);
  file.set_array("tokenizer.ggml.token_type", types);
  file.set_array("tokenizer.ggml.merges", std::vector<std::string>{"h e", "l l", "he ll", "hell o"});
  file.set("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(tokens.size() - 1));
}
inline constexpr uint32_t kTinyVocab = 261;

// Random bytes are valid blocks once their scales are sane half-precision numbers.
inline GgufBuilder::TensorInfo random_blocks(const std::string& name, uint64_t columns, uint64_t rows,
                                             uint32_t type, std::mt19937& random) {
  struct Format {
    uint64_t elements, bytes, scales;  // of a block; half-precision scales at its beginning
  };
  const Format f = type == 1   ? Format{1, 2, 1}
                   : type == 2 ? Format{32, 18, 1}
                   : type == 8 ? Format{32, 34, 1}
                               : Format{256, 144, 2};
  GgufBuilder::TensorInfo info{name, {columns, rows}, type, {}, {}, {}};
  for (uint64_t block = 0; block < columns * rows / f.elements; ++block) {
    for (uint64_t i = 0; i < f.bytes; ++i) {
      uint32_t byte = random() & 0xFF;
      if (i < 2 * f.scales && i % 2 == 1) byte = (type == 1 ? (byte & 0x80) | 0x28 : 0x14);  // 0.03; 0.001
      info.data.push_back(static_cast<std::byte>(byte));
    }
  }
  return info;
}

inline GgufBuilder tiny_model(const TinyShape& s = {}) {
  GgufBuilder file;
  file.set("general.architecture", s.arch);
  const auto key = [&](const char* name) { return s.arch + "." + name; };
  file.set(key("block_count"), s.n_layer);
  file.set(key("context_length"), s.context);
  file.set(key("embedding_length"), s.n_embd);
  file.set(key("feed_forward_length"), s.n_ff);
  file.set(key("attention.head_count"), s.n_head);
  file.set(key("attention.head_count_kv"), s.n_head_kv);
  file.set(key("attention.key_length"), s.d_head);
  file.set(key("attention.value_length"), s.d_head);
  file.set(key("attention.layer_norm_rms_epsilon"), 1e-6f);
  if (!s.attention.empty()) {
    file.set_array(key("attention.kinds"), s.attention);
    file.set(key("attention.window"), s.window).set(key("attention.sinks"), s.sinks);
    file.set(key("performer.features"), s.features);
  }
  if (!s.exits.empty()) {
    file.set_array(key("exit.layers"), s.exits);
    file.set_array(key("exit.thresholds"), std::vector<float>(s.exits.size(), 0.01f));
    file.set(key("exit.delta"), 0.05f).set(key("exit.epsilon"), 0.05f);
    file.set(key("exit.calibration_count"), 100u).set(key("exit.model_sha256"), std::string(64, '0'));
    file.set_array(key("draft.vocabulary"), std::vector<int32_t>{104, 101, 108, 111});
  }
  add_vocabulary(file);

  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto matrix = [&](const std::string& name, uint64_t columns, uint64_t rows) {
    if (s.matrix_type != 0 && name.starts_with("blk.")) {
      file.tensor(random_blocks(name, columns, rows, s.matrix_type, random));
      return;
    }
    std::vector<float> values(static_cast<size_t>(columns * rows));
    for (float& v : values) v = normal(random) / std::sqrt(static_cast<float>(columns));
    file.tensor_f32(name, {columns, rows}, values);
  };
  const auto vector = [&](const std::string& name, uint64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = 1.0f + 0.1f * normal(random);
    file.tensor_f32(name, {n}, values);
  };
  matrix("token_embd.weight", s.n_embd, kTinyVocab);
  vector("output_norm.weight", s.n_embd);
  for (const uint32_t exit : s.exits) vector("exit." + std::to_string(exit) + ".norm.weight", s.n_embd);
  for (uint32_t i = 0; i < s.n_layer; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    vector(block + "attn_norm.weight", s.n_embd);
    matrix(block + "attn_q.weight", s.n_embd, s.n_head * s.d_head);
    matrix(block + "attn_k.weight", s.n_embd, s.n_head_kv * s.d_head);
    matrix(block + "attn_v.weight", s.n_embd, s.n_head_kv * s.d_head);
    matrix(block + "attn_output.weight", s.n_head * s.d_head, s.n_embd);
    if (i < s.attention.size() && s.attention[i] == "performer") {
      std::vector<float> values(size_t{s.d_head} * s.features * s.n_head_kv);
      for (float& v : values) v = normal(random);
      file.tensor_f32(block + "performer.projection.weight", {s.d_head, s.features, s.n_head_kv}, values);
      vector(block + "performer.far_gain", s.n_head);
    }
    vector(block + "ffn_norm.weight", s.n_embd);
    matrix(block + "ffn_gate.weight", s.n_embd, s.n_ff);
    matrix(block + "ffn_up.weight", s.n_embd, s.n_ff);
    matrix(block + "ffn_down.weight", s.n_ff, s.n_embd);
  }
  return file;
}

// A model with each kind of attention, whose sessions are small.
inline TinyShape tiny_selm() {
  TinyShape shape;
  shape.arch = "selm";
  shape.n_layer = 3;
  shape.n_embd = shape.n_ff = 16;
  shape.n_head = 2;
  shape.n_head_kv = 1;
  shape.d_head = 8;
  shape.context = 512;
  shape.attention = {"performer", "window", "softmax"};
  return shape;
}

// A file in the temporary folder, removed at the end.
class TempFile {
 public:
  explicit TempFile(const GgufBuilder& builder) {
    char name[] = "/tmp/selm-test-XXXXXX";
    const int fd = mkstemp(name);
    if (fd < 0) return;
    close(fd);
    path_ = name;
    written_ = builder.write(path_);
  }
  ~TempFile() { std::remove(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }
  bool written() const { return written_; }

 private:
  std::string path_;
  bool written_ = false;
};

inline selm_session_info info_of(const selm_session* session) {
  selm_session_info info{};
  info.struct_size = sizeof info;
  (void)selm_session_get_info(session, &info);
  return info;
}

}  // namespace selm::test
