// One sequence: its key/value cache, its scratch memory, its threads, and the forward pass.
#pragma once

#include <algorithm>
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
#include "engine/speculation.h"
#include "model/adapter.h"
#include "model/calibration.h"
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
  bool exact = false;         // large pieces give the same bits as single tokens, on every instruction set
  uint64_t memory_limit = 0;  // of what the plan counts; 0: none
  Allocator allocator;        // of what the plan counts
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

  // Self-speculation. draft: the token that follows tokens() and the `row` drafts before it goes through
  // the layers below the exit (by its place in hparams().selm.exits), whose head names the likeliest next
  // one and how likely it is, if `next` is not null. verify: those drafts, all of them, go through the other
  // layers together and are appended; logits as eval gives them. After an error the session is as before the
  // first draft.
  size_t most_drafts() const { return std::min<size_t>(kMaxVerified, options_.batch); }
  Status draft(Token token, size_t row, size_t exit, Token* next, double* probability);
  Status verify(std::span<const Token> drafts, size_t exit, Logits which, float* logits);
  void forget_drafts() { rewind(tokens_.size()); }  // instead of verifying them
  // What the head said of the last draft, of model().draft_tokens() or, where these are empty, of all tokens.
  std::span<const float> draft_logits() const { return {draft_logits_, model_.draft_head().rows}; }
  // What guesses cost and gave in this session so far: lookup's, those of exits.
  Pace& lookup_pace() { return lookup_pace_; }
  Choice& exit_choice() { return exit_choice_; }
  // From which probability on a draft may stay unverified, by the calibration in the model's file or, with an
  // adapter, in the adapter's, which is checked against the weights once. Errors: invalid_argument, also with
  // several adapters, or one that is scaled, which none knows.
  Result<double> calibrated_threshold(size_t exit);

  // Forgets everything after the first n tokens, and says how many are left: fewer, where layers whose
  // state does not grow cannot go back as far. They can by attention::kBlock tokens, to the last two
  // marks and as far behind those, and to none; others always can.
  size_t truncate(size_t n);
  // Which expert speaks from now on, by its place in hparams().selm.experts; kAnyExpert: the scores say.
  static constexpr size_t kAnyExpert = SIZE_MAX;
  void set_expert(size_t expert) { asked_ = expert; }
  // Who spoke after the token at `position`, of those held or in the last eval; -1: there are no experts.
  int speaker(size_t position) const { return speakers_.empty() ? -1 : speakers_[position]; }

  // What is added to the weights from now on; tokens that are held keep what was made of them. Adapters of
  // this session's model, which outlive it or are taken away before. Experts that skipped tokens see them
  // first, with the adapters of then. Errors: out_of_memory, cancelled, deadline.
  struct ActiveAdapter {
    const model::Adapter* adapter;
    float scale;
  };
  Status set_adapters(std::vector<ActiveAdapter> adapters);

  // Whether some layers' state does not grow with the text.
  bool bounded() const { return bounded_.size() != 0; }
  // Remembers this place for truncate; an eval of many tokens marks where it began.
  void mark();

  const model::Model& model() const { return model_; }
  const std::vector<Token>& tokens() const { return tokens_; }
  size_t context() const { return options_.context; }
  unsigned threads() const { return options_.threads; }
  uint64_t state_bytes() const;
  uint64_t allocated_bytes() const {
    return kv_.size() + 3 * bounded_.size() + scratch_.size();
  }  // as planned

  // May be called from any thread; the running or next eval stops within one layer.
  void cancel() { cancelled_.store(1, std::memory_order_relaxed); }
  void clear_cancel() { cancelled_.store(0, std::memory_order_relaxed); }
  void set_deadline(uint32_t milliseconds);
  // Errors: cancelled (consumed), deadline.
  Status check_interrupt();

 private:
  struct Layout;       // where each scratch array lies
  struct LayerState {  // what a layer keeps of the tokens so far
    bool grows;
    attention::Cache cache;
    std::optional<attention::Far> far;  // of performer layers
  };
  struct Mark {
    size_t n = 0;  // tokens; 0: none
    std::vector<LayerState> states;
    std::vector<size_t> seen;
    AlignedBuffer bounded;
  };

  Session(const model::Model& model, const SessionOptions& options);
  Status allocate();
  const model::Layer& layer_of(size_t state) const;
  size_t held_by(size_t state, const std::vector<size_t>& seen, size_t n) const;
  bool reaches(const std::vector<LayerState>& states, const std::vector<size_t>& seen, size_t n) const;
  size_t rewind(size_t n);
  Status admit(std::span<const Token> tokens, size_t drafted = 0) const;

  // The forward pass: rows [0, n) of x_, n <= batch, of the tokens from `position` on, through layers
  // whose states begin at `states`. batched: by the arithmetic of many tokens.
  Status run_layers(std::span<const model::Layer> layers, LayerState* states, size_t position, size_t n,
                    bool batched);
  bool batched(size_t n) const { return n >= kernels::kBatchColumns && !options_.exact; }
  // From the embeddings to x_ as the head wants it, of the rows from `wanted` on (n: of none).
  Status run_tokens(std::span<const Token> tokens, size_t position, size_t wanted);
  // The same from the trunk's end on: through experts, where there are any (session_experts.cpp).
  Status run_above(size_t position, size_t n, size_t wanted);
  Status make_room(size_t end);
  void remember_trunk(size_t position, size_t n);
  Status catch_up(size_t expert, size_t end, size_t kept);
  Status catch_up_all();
  void score(size_t position, size_t n);
  size_t score_width() const;
  size_t score_act_bytes() const;
  void choose_speakers(size_t position, size_t n);
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
  struct TileRows;
  void attend_chunk(const model::Layer& layer, const LayerState& state, const QueryTile& tile,
                    size_t position, size_t from, unsigned worker, float* partials);
  bool attend_sinks(const model::Layer& layer, const LayerState& state, const QueryTile& tile,
                    size_t position, unsigned worker, float* partials);
  void attend_far(const model::Layer& layer, LayerState& state, size_t kv_head, size_t position, size_t n,
                  unsigned worker);
  void finish_heads(const model::Layer& layer, const QueryTile& tile, float* states);
  void add_residual(size_t n, const model::Vector& bias);
  // Rows [first, first + n) of x_: normalised in place; through a head.
  void normalise(const model::Vector& norm, size_t first, size_t n);
  void head(const model::Matrix& matrix, size_t first, size_t n, float* logits);

  struct Part {
    const model::Matrix* matrix;
    float* out;  // [n, matrix->rows]
  };
  // prepare(i) gives the i-th input row as floats; each is quantised once for all parts.
  template <class Prepare>
  void multiply(size_t n, bool batched, std::span<const Part> parts, const Prepare& prepare);
  static constexpr size_t kMaxAdapters = 8;
  static constexpr size_t kMaxParts = 4 * (2 + kMaxAdapters);
  struct Product {
    const model::Weight* weight;
    float* out;  // [n, weight->whole.rows]
    model::Projection which = model::Projection::q;
    bool adaptable = true;
  };
  // The same for weights that may be factorized, or have deltas.
  template <class Prepare>
  void project(const model::Layer& layer, size_t n, bool batched, std::span<const Product> products,
               const Prepare& prepare);
  template <class Work>
  void for_each_token(size_t n, size_t numbers, const Work& work);  // numbers: of a token's row

  const model::Model& model_;
  const kernels::Table& kernels_;
  SessionOptions options_;
  model::RopeTable rope_;
  std::vector<Token> tokens_;
  std::vector<LayerState> states_;
  AlignedBuffer kv_;       // of layers that keep every position
  AlignedBuffer bounded_;  // of the others: rings and sums
  AlignedBuffer scratch_;
  std::optional<uint64_t> fingerprint_;            // of the model, once a snapshot asked for it
  std::optional<model::Calibration> calibration_;  // once it was asked for
  Mark marks_[2];                                  // the newer one first
  // Of experts: states_ holds those of the trunk's layers, then those of each expert's.
  size_t asked_ = kAnyExpert;
  std::vector<size_t> seen_;      // tokens that each expert's states hold
  std::vector<int8_t> speakers_;  // [context]
  std::vector<uint8_t> batched_;  // [backlog] how a token was evaluated
  size_t backlog_ = 0;            // tokens of which the trunk's stream is kept, the last ones
  size_t trunk_end_ = 0;          // one past the last position of them
  size_t trunk_written_ = 0;      // positions below this were written at some time
  float* trunk_ = nullptr;        // [backlog, n_embd], a ring
  float* hidden_ = nullptr;      // [experts, batch, n_embd] what each makes of the rows, as the head wants it
  float* scores_ = nullptr;      // [experts, batch]
  float* score_rows_ = nullptr;  // [experts, 2, kMaxVerified, score_width()]
  std::byte* score_acts_ = nullptr;  // [experts, score_act_bytes()] rows as products want them
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
  float* delta_ = nullptr;       // [batch, widest row that a delta is added to]
  float* low_ = nullptr;         // [batch, sum of the ranks] of the factorized weights of one project()
  float* head_gates_ = nullptr;  // [batch, n_head]
  float* far_ = nullptr;         // [batch, n_head] partials of performer layers
  float* attention_ = nullptr;   // [threads] scratch of a tile
  size_t attention_floats_ = 0;
  float* drafts_ = nullptr;                     // [kMaxVerified, n_embd] at the exit
  float* draft_logits_ = nullptr;               // of the head for drafts
  float* partials_ = nullptr;                   // [chunks, widest n_head], of one token that is decoded
  std::byte* acts_[kernels::kActFormats] = {};  // one per activation format, [batch, widest row]

  std::vector<ActiveAdapter> adapters_;
  float *own_low_ = nullptr, *own_delta_ = nullptr;  // without adapters
  AlignedBuffer adapter_rows_;                       // low_ and delta_ for as many adapters
  Pace lookup_pace_;
  Choice exit_choice_;
  std::atomic<uint32_t> cancelled_{0};  // no bool: exchanging a byte needs a library of its own on RISC-V
  std::chrono::steady_clock::time_point deadline_{};
  bool has_deadline_ = false;
};

}  // namespace selm::engine
