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

// Whatever layer's weights are run.
template <class Work>
void for_each_layer(const model::Model& model, const Work& work) {
  for (const model::Layer& layer : model.trunk()) work(layer);
  for (const model::Expert& expert : model.experts())
    for (const model::Layer& layer : expert.layers) work(layer);
}

// The most of `of(layer, projection)` for the weights of one product (Session::project).
template <class Of>
uint64_t most_of_products(const model::Model& model, const Of& of) {
  using P = model::Projection;
  uint64_t most = 0;
  for_each_layer(model, [&](const model::Layer& l) {
    most = std::max({most, of(l, P::q) + of(l, P::k) + of(l, P::v), of(l, P::attn_output),
                     of(l, P::ffn_gate) + of(l, P::ffn_up), of(l, P::ffn_down)});
  });
  return most;
}

// What they make of a token on the way.
uint64_t low_floats(const model::Model& model) {
  return most_of_products(model, [](const model::Layer& layer, model::Projection which) {
    const model::Weight& w = layer.weight(which);
    return uint64_t{w.factors.a.rows} + w.delta.a.rows;
  });
}

uint64_t widest_output(const model::Model& model) {
  uint64_t most = 0;
  for_each_layer(model, [&](const model::Layer& layer) {
    for (size_t i = 0; i < model::kProjections; ++i)
      most = std::max<uint64_t>(most, layer.weight(static_cast<model::Projection>(i)).whole.rows);
  });
  return most;
}

// An expert that has skipped more tokens than this catches up before there are more.
constexpr uint32_t kBacklog = 4096;
// What verifying one more token adds to the cost of one, about.
constexpr double kVerifyShare = 0.15;

uint32_t backlog(const SessionOptions& options) { return std::min(options.context, kBacklog); }

uint64_t widest_act_bytes(uint64_t n) {
  uint64_t most = 0;
  for (uint32_t f = 0; f < kernels::kActFormats; ++f)
    most =
        std::max<uint64_t>(most, kernels::act_row_bytes(static_cast<ActFormat>(f), static_cast<size_t>(n)));
  return most;
}

}  // namespace

// Sizes in bytes of each scratch array, in the order in which they lie.
struct Session::Layout {
  uint64_t drafts = 0, draft_logits = 0;
  uint64_t kv = 0, bounded = 0, low = 0, head_gates = 0, far = 0;
  uint64_t embd = 0, q = 0, k = 0, v = 0, attended = 0, ff = 0, cos_sin = 0, attention = 0, partials = 0;
  uint64_t acts[kernels::kActFormats] = {};
  uint64_t delta = 0, trunk = 0, hidden = 0, scores = 0, score_rows = 0, score_acts = 0;  // of experts

  // Every factor is bounded (hparams.cpp, the limits above), so no product here passes 2^62.
  Layout(const model::Model& model, const SessionOptions& o) {
    const model::Hparams& h = model.hparams();
    uint64_t heads = 0;
    uint64_t heads_kv = 0;
    uint64_t n_ff = 0;
    uint64_t positions = 0;
    bool performer = false;
    for (size_t i = 0; i < h.layers.size(); ++i) {
      const model::LayerShape& layer = h.layers[i];
      const uint64_t times = i < model.trunk().size() ? 1 : model.experts().size();
      const attention::CacheShape cache = attention::cache_shape(h, layer, o.kv_type, o.context, o.batch);
      const bool grows = layer.attention == model::Attention::softmax;
      (grows ? kv : bounded) += times * attention::cache_bytes(cache);
      positions = std::max<uint64_t>(positions, cache.positions);
      performer = performer || layer.attention == model::Attention::performer;
      if (layer.attention == model::Attention::performer)
        bounded += times * padded(attention::Far::floats(h, layer) * sizeof(float));
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
    delta = model.experts().empty() ? 0 : rows(widest_output(model));
    if (const uint64_t experts = model.experts().size(); experts > 0) {
      const uint64_t wide = std::max(h.n_embd, model::kScoreWidths[0]);
      trunk = padded(uint64_t{backlog(o)} * h.n_embd * sizeof(float));
      hidden = rows(experts * h.n_embd);
      scores = rows(experts);
      score_rows = padded(experts * 2 * kMaxVerified * wide * sizeof(float));
      score_acts = padded(experts * kMaxVerified * widest_act_bytes(wide));
    }
    if (!h.selm.exits.empty()) {
      drafts = padded(kMaxVerified * uint64_t{h.n_embd} * sizeof(float));
      draft_logits = padded(uint64_t{model.draft_head().rows} * sizeof(float));
    }
    head_gates = h.selm.head_gate ? rows(heads) : 0;
    far = performer ? rows(heads * kernels::partial_floats(h.d_v)) : 0;
    const uint64_t widest = std::max({uint64_t{h.n_embd}, heads * h.d_v, n_ff, low_floats(model)});
    for (uint32_t f = 0; f < kernels::kActFormats; ++f) {
      acts[f] = padded(
          uint64_t{kernels::act_row_bytes(static_cast<ActFormat>(f), static_cast<size_t>(widest))} * o.batch);
    }
    if (o.exact || model.kernels().matmul_u8 == nullptr) acts[static_cast<size_t>(ActFormat::u8_256)] = 0;
    if (o.exact || model.kernels().matmul_bf16 == nullptr) acts[static_cast<size_t>(ActFormat::bf16)] = 0;
  }

  uint64_t scratch() const {
    return 3 * embd + q + k + v + attended + 2 * ff + cos_sin + low + head_gates + far + drafts +
           draft_logits + attention + partials + delta + trunk + hidden + scores + score_rows + score_acts +
           std::accumulate(std::begin(acts), std::end(acts), uint64_t{0});
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
  SELM_ASSIGN(const MemoryPlan planned, plan(model, options));
  const uint64_t needed = planned.kv_bytes + planned.scratch_bytes;
  if (options.memory_limit > 0 && needed > options.memory_limit) {
    return error(Code::out_of_memory,
                 "a context of %u positions needs %llu bytes, more than the limit of %llu", options.context,
                 static_cast<unsigned long long>(needed),
                 static_cast<unsigned long long>(options.memory_limit));
  }
  std::unique_ptr<Session> session(new Session(model, options));
  SELM_TRY(session->allocate());
  return session;
}

Session::Session(const model::Model& model, const SessionOptions& options)
    : model_(model),
      kernels_(model.kernels()),
      options_(options),
      rope_(model.hparams().rope, model.rope_factors()),
      lookup_pace_(kVerifyShare) {}

Status Session::allocate() {
  const Layout layout(model_, options_);
  const Allocator& from = options_.allocator;
  auto kv = AlignedBuffer::make(layout.kv, from);
  auto bounded = AlignedBuffer::make(layout.bounded, from);
  auto mark0 = AlignedBuffer::make(layout.bounded, from);
  auto mark1 = AlignedBuffer::make(layout.bounded, from);
  auto scratch = AlignedBuffer::make(layout.scratch(), from);
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
  drafts_ = floats(layout.drafts);
  draft_logits_ = floats(layout.draft_logits);
  delta_ = floats(layout.delta);
  trunk_ = floats(layout.trunk);
  hidden_ = floats(layout.hidden);
  scores_ = floats(layout.scores);
  score_rows_ = floats(layout.score_rows);
  score_acts_ = take(layout.score_acts);
  attention_ = floats(layout.attention);
  attention_floats_ = static_cast<size_t>(attention_floats(model_.hparams()));
  partials_ = floats(layout.partials);
  for (uint32_t f = 0; f < kernels::kActFormats; ++f) acts_[f] = take(layout.acts[f]);

  const model::Hparams& h = model_.hparams();
  if (bounded_.size() > 0)
    std::memset(bounded_.data(), 0, bounded_.size());  // kernels read whole strips of a ring
  std::byte* growing = kv_.data();
  std::byte* own = bounded_.data();
  const auto add_states = [&](size_t first, size_t last) {
    for (const model::LayerShape& layer : std::span(h.layers).subspan(first, last - first)) {
      const attention::CacheShape shape =
          attention::cache_shape(h, layer, options_.kv_type, options_.context, options_.batch);
      const bool grows = layer.attention == model::Attention::softmax;
      std::byte*& memory = grows ? growing : own;
      states_.push_back({grows, attention::Cache(shape, memory), std::nullopt});
      memory += attention::cache_bytes(shape);
      if (layer.attention != model::Attention::performer) continue;
      states_.back().far.emplace(h, layer, reinterpret_cast<float*>(own));
      own += padded(attention::Far::floats(h, layer) * sizeof(float));
    }
  };
  add_states(0, model_.trunk().size());
  for (size_t e = 0; e < model_.experts().size(); ++e) add_states(model_.trunk().size(), h.layers.size());
  if (!model_.experts().empty()) {
    backlog_ = backlog(options_);
    seen_.assign(model_.experts().size(), 0);
    batched_.assign(backlog_, 0);
    speakers_.assign(options_.context, -1);
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
  if (cancelled_.exchange(0, std::memory_order_relaxed)) return error(Code::cancelled, "cancelled");
  if (has_deadline_ && std::chrono::steady_clock::now() >= deadline_) {
    return error(Code::deadline, "the deadline has passed");
  }
  return {};
}

Status Session::admit(std::span<const Token> tokens, size_t drafted) const {
  if (tokens.size() > options_.context - std::min<size_t>(tokens_.size() + drafted, options_.context)) {
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
    const bool last = done + n == tokens.size();
    const size_t wanted = which == Logits::all ? 0 : (which == Logits::last && last ? n - 1 : n);
    const Status status = run_tokens(tokens.subspan(done, n), tokens_.size() + done, wanted);
    if (!status.ok()) {
      tokens_.resize(rewind(tokens_.size()));
      return status;
    }
    if (which == Logits::all) head(model_.output(), 0, n, logits + done * model_.n_vocab());
    if (which == Logits::last && last) head(model_.output(), n - 1, 1, logits);
    done += n;
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  return {};
}

Status Session::run_tokens(std::span<const Token> tokens, size_t position, size_t wanted) {
  SELM_TRY(make_room(position + tokens.size()));
  embed_tokens(tokens);
  SELM_TRY(run_layers(model_.trunk(), states_.data(), position, tokens.size(), batched(tokens.size())));
  return run_above(position, tokens.size(), wanted);
}

Status Session::draft(Token token, size_t row, size_t exit, Token* next, double* probability) {
  const Token alone[] = {token};
  const size_t width = model_.hparams().n_embd;
  SELM_TRY(admit(alone, row));
  embed_tokens(alone);
  const size_t below = model_.hparams().selm.exits[exit];
  const Status status =
      run_layers(model_.trunk().first(below), states_.data(), tokens_.size() + row, 1, false);
  if (!status.ok()) {
    rewind(tokens_.size());
    return status;
  }
  std::memcpy(drafts_ + row * width, x_, width * sizeof(float));
  if (next == nullptr) return {};
  const model::Matrix& shortlist = model_.draft_head();
  normalise(model_.exit_norms()[exit], 0, 1);
  head(shortlist, 0, 1, draft_logits_);
  const size_t best =
      static_cast<size_t>(std::max_element(draft_logits_, draft_logits_ + shortlist.rows) - draft_logits_);
  double total = 0;
  for (size_t i = 0; i < shortlist.rows; ++i)
    total += std::exp(static_cast<double>(draft_logits_[i] - draft_logits_[best]));
  *probability = 1.0 / total;
  *next = model_.draft_tokens().empty() ? static_cast<Token>(best) : model_.draft_tokens()[best];
  return {};
}

Status Session::verify(std::span<const Token> drafts, size_t exit, Logits which, float* logits) {
  const size_t below = model_.hparams().selm.exits[exit];
  const size_t position = tokens_.size();
  const size_t n = drafts.size();
  const size_t wanted = which == Logits::all ? 0 : (which == Logits::last ? n - 1 : n);
  const auto run = [&]() -> Status {
    SELM_TRY(make_room(position + n));
    std::memcpy(x_, drafts_, n * model_.hparams().n_embd * sizeof(float));
    SELM_TRY(run_layers(model_.trunk().subspan(below), states_.data() + below, position, n, false));
    return run_above(position, n, wanted);
  };
  const Status status = run();
  if (!status.ok()) {
    rewind(tokens_.size());
    return status;
  }
  if (wanted < n) head(model_.output(), wanted, n - wanted, logits);
  tokens_.insert(tokens_.end(), drafts.begin(), drafts.end());
  return {};
}

Result<double> Session::calibrated_threshold(size_t exit) {
  const bool adapted = !adapters_.empty();
  if (adapters_.size() > 1 || (adapted && adapters_[0].scale != 1.0f)) {
    return error(Code::invalid_argument,
                 "exits are calibrated for the model alone, or with one adapter at scale 1");
  }
  if (!calibration_) {
    SELM_ASSIGN(calibration_, model::read_calibration(model_, adapted ? adapters_[0].adapter : nullptr));
  }
  return static_cast<double>(calibration_->thresholds[exit]);
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
    const Status status = run_tokens(tokens.subspan(done, n), done, 0);
    if (!status.ok() || done + n == tokens.size()) rewind(0);
    SELM_TRY(status);
    done += n;
    for (size_t i = 0; i < n * width; ++i) sum[i % width] += static_cast<double>(x_[i]);
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

Status Session::set_adapters(std::vector<ActiveAdapter> adapters) {
  if (adapters.size() > kMaxAdapters) {
    return error(Code::invalid_argument, "%zu adapters at once; the most is %zu", adapters.size(),
                 kMaxAdapters);
  }
  for (const ActiveAdapter& active : adapters) {
    if (&active.adapter->model() != &model_) {
      return error(Code::invalid_argument, "the adapter was opened for another model");
    }
  }
  SELM_TRY(catch_up_all());
  const uint64_t low = most_of_products(model_, [&](const model::Layer& layer, model::Projection which) {
    const model::Weight& weight = layer.weight(which);
    uint64_t ranks = uint64_t{weight.factors.a.rows} + weight.delta.a.rows;
    for (const ActiveAdapter& active : adapters) ranks += active.adapter->pair(layer.index, which).a.rows;
    return ranks;
  });
  const uint64_t delta = padded(widest_output(model_) * sizeof(float) * options_.batch);
  auto rows =
      AlignedBuffer::make(adapters.empty() ? 0 : padded(low * sizeof(float) * options_.batch) + delta);
  if (!rows) return error(Code::out_of_memory, "no memory for the products of adapters");
  if (adapters_.empty()) {
    own_low_ = low_;
    own_delta_ = delta_;
  }
  adapter_rows_ = std::move(*rows);
  adapters_ = std::move(adapters);
  calibration_.reset();  // is of other weights
  delta_ = adapters_.empty() ? own_delta_ : adapter_rows_.as<float>();
  low_ = adapters_.empty() ? own_low_ : adapter_rows_.as<float>() + delta / sizeof(float);
  return {};
}

size_t Session::score_width() const { return std::max(model_.hparams().n_embd, model::kScoreWidths[0]); }
size_t Session::score_act_bytes() const {
  return static_cast<size_t>(kMaxVerified * widest_act_bytes(score_width()));
}

void Session::mark() {
  if (bounded_.size() == 0 || tokens_.empty() || marks_[0].n == tokens_.size()) return;
  std::swap(marks_[0], marks_[1]);
  marks_[0].n = tokens_.size();
  marks_[0].states = states_;
  marks_[0].seen = seen_;
  std::memcpy(marks_[0].bounded.data(), bounded_.data(), bounded_.size());
}

const model::Layer& Session::layer_of(size_t state) const {
  const size_t trunk = model_.trunk().size();
  if (state < trunk) return model_.trunk()[state];
  const size_t above = model_.hparams().layers.size() - trunk;
  return model_.experts()[(state - trunk) / above].layers[(state - trunk) % above];
}

// How many tokens a layer's state holds of n: an expert may have skipped the last.
size_t Session::held_by(size_t state, const std::vector<size_t>& seen, size_t n) const {
  const size_t trunk = model_.trunk().size();
  return state < trunk ? n : std::min(n, seen[(state - trunk) / (model_.hparams().layers.size() - trunk)]);
}

// Whether layers in these states can go back to n tokens.
bool Session::reaches(const std::vector<LayerState>& states, const std::vector<size_t>& seen,
                      size_t n) const {
  const size_t window = model_.hparams().selm.window;
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i].grows) continue;
    const size_t held = held_by(i, seen, n);
    const size_t from = held + 1 > window ? held + 1 - window : 0;  // seen from here on by the next token
    const LayerState& state = states[i];
    if (from < state.cache.oldest() || (state.far && !state.far->reaches(state.cache, held))) return false;
  }
  // What an expert has still to see.
  return std::all_of(seen.begin(), seen.end(),
                     [&](size_t s) { return std::min(s, n) + backlog_ >= trunk_written_; });
}

// The states of the layers go back to n tokens, or as near below that as they can.
size_t Session::rewind(size_t n) {
  if (bounded_.size() != 0 && !reaches(states_, seen_, n)) {
    const Mark* best = nullptr;
    size_t kept = 0;
    for (const Mark& mark : marks_) {
      const size_t wanted = std::min(mark.n, n);
      if (wanted > kept && reaches(mark.states, mark.seen, wanted)) {
        kept = wanted;
        best = &mark;
      }
    }
    n = kept;
    if (best != nullptr) {
      states_ = best->states;
      seen_ = best->seen;
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
      const size_t held = held_by(i, seen_, n);
      state.far->truncate(held);
      state.far->settle(kernels_, layer_of(i), state.cache, held, scratch_of(0));
    }
  }
  for (size_t& seen : seen_) seen = std::min(seen, n);
  trunk_end_ = std::min(trunk_end_, n);
  if (n == 0) trunk_written_ = 0;
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
  const model::Hparams& h = model_.hparams();
  const size_t trunk = model_.trunk().size();
  uint64_t total = std::min(trunk_end_, backlog_) * h.n_embd * sizeof(float);
  for (size_t i = 0; i < states_.size(); ++i) {
    total += states_[i].cache.bytes(held_by(i, seen_, tokens_.size()));
    const size_t layer = i < trunk ? i : trunk + (i - trunk) % (h.layers.size() - trunk);
    if (states_[i].far) total += attention::Far::floats(h, h.layers[layer]) * sizeof(float);
  }
  return total;
}

}  // namespace selm::engine
