#include "engine/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/cpu.h"

namespace selm::engine {
namespace {

constexpr uint32_t kDefaultContext = 4096;
constexpr uint32_t kDefaultBatch = 256;
constexpr uint32_t kMaxContext = 1u << 24;
constexpr uint32_t kMaxBatch = 4096;
constexpr uint32_t kMaxThreads = 512;
constexpr uint64_t kAlign = 64;

using kernels::ActFormat;

SessionOptions with_defaults(const model::Model& model, SessionOptions options) {
  if (options.context == 0) options.context = std::min(model.hparams().n_ctx_train, kDefaultContext);
  if (options.threads == 0) options.threads = usable_cores();
  if (options.batch == 0) options.batch = kDefaultBatch;
  options.batch = std::min({options.batch, options.context, kMaxBatch});
  options.threads = std::min(options.threads, kMaxThreads);
  return options;
}

uint64_t padded(uint64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

uint64_t chunks(uint64_t positions) { return (positions + kernels::kChunk - 1) / kernels::kChunk; }

// What one thread works with in attention: the kernel's scratch, partials and states of its rows.
uint64_t attention_floats(const model::Hparams& h) {
  const uint64_t near = kernels::attention_scratch_floats(h.d_k, h.d_v) +
                        2 * kernels::kMaxQueries * kernels::partial_floats(h.d_v);
  return h.selm.features == 0 ? near : std::max(near, attention::Far::scratch_floats(h));
}

// The most that the weights of one product make of a token on the way (Session::project).
uint64_t low_floats(const model::Model& model) {
  uint64_t most = 0;
  for (const model::Layer& l : model.layers()) {
    most = std::max({most, uint64_t{l.q.a.rows} + l.k.a.rows + l.v.a.rows, uint64_t{l.attn_output.a.rows},
                     uint64_t{l.ffn_gate.a.rows} + l.ffn_up.a.rows, uint64_t{l.ffn_down.a.rows}});
  }
  return most;
}

}  // namespace

// Sizes in bytes of each scratch array, in the order in which they lie.
struct Session::Layout {
  uint64_t kv = 0, bounded = 0, low = 0, head_gates = 0, far = 0;
  uint64_t embd = 0, q = 0, k = 0, v = 0, attended = 0, ff = 0, cos_sin = 0, attention = 0, partials = 0;
  uint64_t acts[kernels::kActFormats] = {};

  // Every factor is bounded (hparams.cpp, the limits above), so no product here passes 2^62.
  Layout(const model::Model& model, const SessionOptions& o) {
    const model::Hparams& h = model.hparams();
    uint64_t heads = 0;
    uint64_t heads_kv = 0;
    uint64_t n_ff = 0;
    uint64_t positions = 0;
    bool performer = false;
    for (const model::LayerShape& layer : h.layers) {
      const attention::CacheShape cache = attention::cache_shape(h, layer, o.kv_type, o.context, o.batch);
      const bool grows = layer.attention == model::Attention::softmax;
      (grows ? kv : bounded) += attention::cache_bytes(cache);
      positions = std::max<uint64_t>(positions, cache.positions);
      performer = performer || layer.attention == model::Attention::performer;
      if (layer.attention == model::Attention::performer)
        bounded += padded(attention::Far::floats(h, layer) * sizeof(float));
      heads = std::max<uint64_t>(heads, layer.n_head);
      heads_kv = std::max<uint64_t>(heads_kv, layer.n_head_kv);
      n_ff = std::max<uint64_t>(n_ff, layer.n_ff);
    }
    const auto rows = [&](uint64_t width) { return padded(width * sizeof(float) * o.batch); };
    embd = rows(h.n_embd);
    q = rows(heads * h.d_k);
    k = rows(heads_kv * h.d_k);
    v = rows(heads_kv * h.d_v);
    attended = rows(heads * h.d_v);
    ff = rows(n_ff);
    cos_sin = rows(h.rope.n_rot);
    attention = padded(uint64_t{o.threads} * attention_floats(h) * sizeof(float));
    // A window may begin within one chunk and end within another; the sinks are one more.
    partials = padded((chunks(positions) + 2) * heads * kernels::partial_floats(h.d_v) * sizeof(float));
    low = rows(low_floats(model));
    head_gates = h.selm.head_gate ? rows(heads) : 0;
    far = performer ? rows(heads * kernels::partial_floats(h.d_v)) : 0;
    const uint64_t widest = std::max({uint64_t{h.n_embd}, heads * h.d_v, n_ff, low_floats(model)});
    for (uint32_t f = 0; f < kernels::kActFormats; ++f) {
      acts[f] = padded(kernels::act_row_bytes(static_cast<kernels::ActFormat>(f), widest) * o.batch);
    }
    if (o.exact || model.kernels().matmul_u8 == nullptr) acts[static_cast<size_t>(ActFormat::u8_256)] = 0;
    if (o.exact || model.kernels().matmul_bf16 == nullptr) acts[static_cast<size_t>(ActFormat::bf16)] = 0;
  }

  uint64_t scratch() const {
    return 3 * embd + q + k + v + attended + 2 * ff + cos_sin + low + head_gates + far + attention +
           partials + std::accumulate(std::begin(acts), std::end(acts), uint64_t{0});
  }
};

Result<MemoryPlan> Session::plan(const model::Model& model, SessionOptions options) {
  options = with_defaults(model, options);
  if (options.context > kMaxContext) {
    return error(Code::invalid_argument, "a context of %u positions is more than %u", options.context,
                 kMaxContext);
  }
  const model::Hparams& h = model.hparams();
  if (options.kv_type == KvType::q8_0 && (h.d_k % 32 != 0 || h.d_v % 32 != 0)) {
    return error(Code::invalid_argument, "heads of %u and %u elements do not fit a q8_0 cache (blocks of 32)",
                 h.d_k, h.d_v);
  }
  const Layout layout(model, options);
  return MemoryPlan{model.file().size(), layout.kv + 3 * layout.bounded, layout.scratch()};
}

Result<std::unique_ptr<Session>> Session::create(const model::Model& model, SessionOptions options) {
  options = with_defaults(model, options);
  SELM_TRY(plan(model, options).status());
  std::unique_ptr<Session> session(new Session(model, options));
  SELM_TRY(session->allocate());
  return session;
}

Session::Session(const model::Model& model, const SessionOptions& options)
    : model_(model),
      kernels_(model.kernels()),
      options_(options),
      rope_(model.hparams().rope, model.rope_factors()) {}

Status Session::allocate() {
  const Layout layout(model_, options_);
  auto kv = AlignedBuffer::make(layout.kv);
  auto bounded = AlignedBuffer::make(layout.bounded);
  auto mark0 = AlignedBuffer::make(layout.bounded);
  auto mark1 = AlignedBuffer::make(layout.bounded);
  auto scratch = AlignedBuffer::make(layout.scratch());
  if (!kv || !bounded || !mark0 || !mark1 || !scratch) {
    return error(Code::out_of_memory, "no memory for a context of %u positions: %llu MB are needed",
                 options_.context,
                 static_cast<unsigned long long>((layout.kv + 3 * layout.bounded + layout.scratch()) >> 20));
  }
  kv_ = std::move(*kv);
  bounded_ = std::move(*bounded);
  marks_[0].bounded = std::move(*mark0);
  marks_[1].bounded = std::move(*mark1);
  scratch_ = std::move(*scratch);
  std::byte* next = scratch_.data();
  const auto take = [&next](uint64_t bytes) {
    std::byte* here = next;
    next += bytes;
    return here;
  };
  const auto floats = [&take](uint64_t bytes) { return reinterpret_cast<float*>(take(bytes)); };
  x_ = floats(layout.embd);
  normed_ = floats(layout.embd);
  projected_ = floats(layout.embd);
  q_ = floats(layout.q);
  k_ = floats(layout.k);
  v_ = floats(layout.v);
  attended_ = floats(layout.attended);
  gate_ = floats(layout.ff);
  up_ = floats(layout.ff);
  cos_sin_ = floats(layout.cos_sin);
  low_ = floats(layout.low);
  head_gates_ = floats(layout.head_gates);
  far_ = floats(layout.far);
  attention_ = floats(layout.attention);
  attention_floats_ = attention_floats(model_.hparams());
  partials_ = floats(layout.partials);
  for (uint32_t f = 0; f < kernels::kActFormats; ++f) acts_[f] = take(layout.acts[f]);

  const model::Hparams& h = model_.hparams();
  if (bounded_.size() > 0)
    std::memset(bounded_.data(), 0, bounded_.size());  // kernels read whole strips of a ring
  std::byte* growing = kv_.data();
  std::byte* own = bounded_.data();
  states_.reserve(h.layers.size());
  for (const model::LayerShape& layer : h.layers) {
    const attention::CacheShape shape =
        attention::cache_shape(h, layer, options_.kv_type, options_.context, options_.batch);
    std::byte*& memory = layer.attention == model::Attention::softmax ? growing : own;
    states_.push_back({attention::Cache(shape, memory), std::nullopt});
    memory += attention::cache_bytes(shape);
    if (layer.attention != model::Attention::performer) continue;
    states_.back().far.emplace(h, layer, reinterpret_cast<float*>(own));
    own += padded(attention::Far::floats(h, layer) * sizeof(float));
  }
  tokens_.reserve(options_.context);
  pool_ = std::make_unique<ThreadPool>(options_.threads);
  return {};
}

void Session::set_deadline(uint32_t milliseconds) {
  has_deadline_ = milliseconds != 0;
  deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
}

Status Session::check_interrupt() {
  // Consumed here, so that one cancel stops one piece of work.
  if (cancelled_.exchange(false, std::memory_order_relaxed)) return error(Code::cancelled, "cancelled");
  if (has_deadline_ && std::chrono::steady_clock::now() >= deadline_) {
    return error(Code::deadline, "the deadline has passed");
  }
  return {};
}

Status Session::admit(std::span<const Token> tokens) const {
  if (tokens.size() > options_.context - tokens_.size()) {
    return error(Code::context_full, "%zu tokens do not fit: the context of %u positions holds %zu already",
                 tokens.size(), options_.context, tokens_.size());
  }
  for (const Token token : tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= model_.n_vocab()) {
      return error(Code::invalid_argument, "the token %d is not in the vocabulary of %u", token,
                   model_.n_vocab());
    }
  }
  return {};
}

Status Session::eval(std::span<const Token> tokens, Logits which, float* logits) {
  if (tokens.empty() && which != Logits::none) {
    return error(Code::invalid_argument, "no token was given whose logits could be asked for");
  }
  SELM_TRY(admit(tokens));
  if (tokens.size() > attention::kBlock) mark();  // so that an error can be undone
  size_t done = 0;
  while (done < tokens.size()) {
    const size_t n = std::min<size_t>(options_.batch, tokens.size() - done);
    const Status status = run_layers(tokens.subspan(done, n), tokens_.size() + done);
    if (!status.ok()) {
      tokens_.resize(rewind(tokens_.size()));
      return status;
    }
    done += n;
    if (which == Logits::all) head(0, n, logits + (done - n) * model_.n_vocab());
    if (which == Logits::last && done == tokens.size()) head(n - 1, 1, logits);
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  return {};
}

Status Session::embed(std::span<const Token> tokens, float* embedding) {
  if (!tokens_.empty())
    return error(Code::invalid_argument, "embedding needs a session that holds no tokens");
  if (tokens.empty()) return error(Code::invalid_argument, "there is no token to embed");
  SELM_TRY(admit(tokens));
  const size_t width = model_.hparams().n_embd;
  std::vector<double> sum(width, 0.0);
  for (size_t done = 0; done < tokens.size();) {
    const size_t n = std::min<size_t>(options_.batch, tokens.size() - done);
    const Status status = run_layers(tokens.subspan(done, n), done);
    if (!status.ok() || done + n == tokens.size()) rewind(0);
    SELM_TRY(status);
    done += n;
    for (size_t i = 0; i < n; ++i) {
      kernels_.rms_norm(x_ + i * width, model_.output_norm().data(), normed_, width,
                        model_.hparams().rms_eps);
      for (size_t j = 0; j < width; ++j) sum[j] += static_cast<double>(normed_[j]);
    }
  }
  double squares = 0.0;
  for (const double s : sum) squares += s * s;
  if (!std::isfinite(squares) || squares == 0.0) {
    return error(Code::internal, "the hidden states are not finite; the weights may be damaged");
  }
  const double scale = 1.0 / std::sqrt(squares);
  for (size_t j = 0; j < width; ++j) embedding[j] = static_cast<float>(sum[j] * scale);
  return {};
}

void Session::mark() {
  if (bounded_.size() == 0 || tokens_.empty() || marks_[0].n == tokens_.size()) return;
  std::swap(marks_[0], marks_[1]);
  marks_[0].n = tokens_.size();
  marks_[0].states = states_;
  std::memcpy(marks_[0].bounded.data(), bounded_.data(), bounded_.size());
}

// Whether layers in these states can go back to n tokens.
bool Session::reaches(const std::vector<LayerState>& states, size_t n) const {
  const model::Hparams& h = model_.hparams();
  const size_t seen = n + 1 > h.selm.window ? n + 1 - h.selm.window : 0;  // from here on by the next token
  for (size_t i = 0; i < states.size(); ++i) {
    if (h.layers[i].attention == model::Attention::softmax) continue;
    const LayerState& state = states[i];
    if (seen < state.cache.oldest() || (state.far && !state.far->reaches(state.cache, n))) return false;
  }
  return true;
}

// The states of the layers go back to n tokens, or as near below that as they can.
size_t Session::rewind(size_t n) {
  if (bounded_.size() == 0) return n;
  if (!reaches(states_, n)) {
    const Mark* best = nullptr;
    size_t kept = 0;
    for (const Mark& mark : marks_) {
      const size_t reached = mark.n <= n ? mark.n : (reaches(mark.states, n) ? n : 0);
      if (reached > kept) {
        kept = reached;
        best = &mark;
      }
    }
    n = kept;
    if (best != nullptr) {
      states_ = best->states;
      std::memcpy(bounded_.data(), best->bounded.data(), bounded_.size());
    }
  }
  for (size_t i = 0; i < states_.size(); ++i) {
    LayerState& state = states_[i];
    if (n == 0) state.cache.clear();
    if (!state.far) continue;
    if (n == 0) {
      state.far->clear();
    } else {
      state.far->truncate(n);
      state.far->settle(kernels_, model_.layers()[i], state.cache, n, scratch_of(0));
    }
  }
  for (Mark& mark : marks_) {
    if (mark.n > n) mark.n = 0;
  }
  return n;
}

size_t Session::truncate(size_t n) {
  if (n < tokens_.size()) tokens_.resize(rewind(n));
  return tokens_.size();
}

uint64_t Session::state_bytes() const {
  uint64_t total = 0;
  for (size_t i = 0; i < states_.size(); ++i) {
    total += states_[i].cache.bytes(tokens_.size());
    if (states_[i].far)
      total += attention::Far::floats(model_.hparams(), model_.hparams().layers[i]) * sizeof(float);
  }
  return total;
}

}  // namespace selm::engine
