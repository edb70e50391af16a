// One sequence: its key/value cache, its scratch memory, its threads, and the forward pass.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attention/cache.h"
#include "attention/far.h"
#include "base/memory.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "model/model.h"
#include "model/rope.h"

namespace selm::engine {

using text::Token;

using KvType = kernels::KvFormat;
enum class Logits { none, last, all };

struct SessionOptions {
  uint32_t context = 0;  // positions; 0: as trained, at most 4096
  uint32_t threads = 0;  // 0: the cores this process may use
  uint32_t batch = 0;    // tokens evaluated together; 0: 256
  KvType kv_type = KvType::f16;
  bool exact = false;  // large pieces give the same bits as single tokens, on every instruction set
};

struct MemoryPlan {
  uint64_t weights_mapped = 0;
  uint64_t kv_bytes = 0;
  uint64_t scratch_bytes = 0;
};

class Session {
 public:
  friend class Snapshot;  // writes and reads the state

  // Exact bytes, without allocating.
  static Result<MemoryPlan> plan(const model::Model& model, SessionOptions options);
  static Result<std::unique_ptr<Session>> create(const model::Model& model, SessionOptions options);

  // Appends tokens; logits as asked: [n_vocab] or [n_tokens, n_vocab].
  // After an error the session is as before.
  Status eval(std::span<const Token> tokens, Logits which, float* logits);
  // Mean of the final hidden states, L2-normalised; needs an empty session and leaves it empty.
  Status embed(std::span<const Token> tokens, float* embedding);

  // Forgets everything after the first n tokens, and says how many are left: fewer, where layers whose
  // state does not grow cannot go back as far. They can by attention::kBlock tokens, to the last two
  // marks and as far behind those, and to none; others always can.
  size_t truncate(size_t n);
  // Remembers this place for truncate; an eval of many tokens marks where it began.
  void mark();

  const model::Model& model() const { return model_; }
  const std::vector<Token>& tokens() const { return tokens_; }
  size_t context() const { return options_.context; }
  unsigned threads() const { return options_.threads; }
  uint64_t state_bytes() const;

  // May be called from any thread; the running or next eval stops within one layer.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  void clear_cancel() { cancelled_.store(false, std::memory_order_relaxed); }
  void set_deadline(uint32_t milliseconds);

 private:
  struct Layout;       // where each scratch array lies
  struct LayerState {  // what a layer keeps of the tokens so far
    attention::Cache cache;
    std::optional<attention::Far> far;  // of performer layers
  };
  struct Mark {
    size_t n = 0;  // tokens; 0: none
    std::vector<LayerState> states;
    AlignedBuffer bounded;
  };

  Session(const model::Model& model, const SessionOptions& options);
  Status allocate();
  Status check_interrupt();
  bool reaches(const std::vector<LayerState>& states, size_t n) const;
  size_t rewind(size_t n);
  Status admit(std::span<const Token> tokens) const;

  // The forward pass over tokens [position, position + n), n <= batch; leaves x_ after the last layer.
  Status run_layers(std::span<const Token> tokens, size_t position);
  void embed_tokens(std::span<const Token> tokens);
  float* scratch_of(unsigned worker) const { return attention_ + worker * attention_floats_; }
  void attention_inputs(const model::Layer& layer, LayerState& state, size_t position, size_t n);
  // attended_ from q_ (session_attention.cpp).
  void attend(const model::Layer& layer, LayerState& state, size_t position, size_t n);
  void attend_prompt(const model::Layer& layer, const LayerState& state, size_t position, size_t n);
  void attend_decoding(const model::Layer& layer, LayerState& state, size_t position);
  // Query heads [head, head + n_heads) of tokens [first, first + n), which share one KV head, over
  // the chunk that begins at `from`; the rows are the tokens' heads, token by token.
  struct QueryTile {
    size_t first, n, head, n_heads;
  };
  void attend_chunk(const model::Layer& layer, const LayerState& state, const QueryTile& tile,
                    size_t position, size_t from, unsigned worker, float* partials);
  bool attend_sinks(const model::Layer& layer, const LayerState& state, const QueryTile& tile,
                    size_t position, unsigned worker, float* partials);
  void attend_far(const model::Layer& layer, LayerState& state, size_t kv_head, size_t position, size_t n,
                  unsigned worker);
  void finish_heads(const model::Layer& layer, const QueryTile& tile, float* states);
  void add_residual(size_t n, const model::Vector& bias);
  // Output norm and head for rows [first, first + n) of x_.
  void head(size_t first, size_t n, float* logits);

  struct Part {
    const model::Matrix* matrix;
    float* out;  // [n, matrix->rows]
  };
  // prepare(i) gives the i-th input row as floats; each is quantised once for all parts.
  template <class Prepare>
  void multiply(size_t n, std::span<const Part> parts, const Prepare& prepare);
  static constexpr size_t kMaxProducts = 4;
  struct Product {
    const model::Weight* weight;
    float* out;  // [n, weight->whole.rows]
  };
  // The same for weights that may be factorized.
  template <class Prepare>
  void project(size_t n, std::span<const Product> products, const Prepare& prepare);
  template <class Work>
  void for_each_token(size_t n, const Work& work);

  const model::Model& model_;
  const kernels::Table& kernels_;
  SessionOptions options_;
  model::RopeTable rope_;
  std::vector<Token> tokens_;
  std::vector<LayerState> states_;
  AlignedBuffer kv_;       // of layers that keep every position
  AlignedBuffer bounded_;  // of the others: rings and sums
  AlignedBuffer scratch_;
  Mark marks_[2];                        // the newer one first
  std::optional<uint64_t> fingerprint_;  // of the model, once a snapshot asked for it
  std::unique_ptr<ThreadPool> pool_;

  // Views into scratch_, rows of the current batch.
  float* x_ = nullptr;           // [batch, n_embd] residual stream
  float* normed_ = nullptr;      // [batch, n_embd]
  float* q_ = nullptr;           // [batch, n_head * d_k]
  float* k_ = nullptr;           // [batch, n_head_kv * d_k]
  float* v_ = nullptr;           // [batch, n_head_kv * d_v]
  float* attended_ = nullptr;    // [batch, n_head * d_v]
  float* projected_ = nullptr;   // [batch, n_embd]
  float* gate_ = nullptr;        // [batch, n_ff]
  float* up_ = nullptr;          // [batch, n_ff]
  float* cos_sin_ = nullptr;     // [batch, n_rot]
  float* low_ = nullptr;         // [batch, sum of the ranks] of the factorized weights of one project()
  float* head_gates_ = nullptr;  // [batch, n_head]
  float* far_ = nullptr;         // [batch, n_head] partials of performer layers
  float* attention_ = nullptr;   // [threads] scratch of a tile
  size_t attention_floats_ = 0;
  float* partials_ = nullptr;                   // [chunks, widest n_head], of one token that is decoded
  std::byte* acts_[kernels::kActFormats] = {};  // one per activation format, [batch, widest row]

  std::atomic<bool> cancelled_{false};
  std::chrono::steady_clock::time_point deadline_{};
  bool has_deadline_ = false;
};

}  // namespace selm::engine
