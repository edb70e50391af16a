#include "attention/far.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace selm::attention {
namespace {

using kernels::kMaxQueries;
using kernels::padded;
using kernels::partial_floats;

constexpr float kNothing = -1e30f;  // the logarithm of no features at all; finite, so that differences are
constexpr float kInfinity = std::numeric_limits<float>::infinity();

size_t act_floats(size_t d_k) { return kernels::act_row_bytes(kernels::ActFormat::f32, d_k) / sizeof(float); }

size_t head_floats(const model::Hparams& h) {
  return padded(h.selm.features) * (2 * partial_floats(h.d_v) + kBlock);
}

}  // namespace

struct Far::Work {
  Work(const model::Hparams& h, const kernels::Table& k, const model::Layer& l, const Cache& c, size_t head,
       float* scratch)
      : table(k), layer(l), cache(c), kv_head(head), acts(scratch) {
    features = acts + kMaxQueries * act_floats(h.d_k);
    scores = features + kMaxQueries * padded(h.selm.features);
    values = scores + kMaxQueries * kBlock;
    leaving = values + kBlock * partial_floats(h.d_v);
    partials = leaving + padded(h.selm.features) * kBlock;
    scale = partials + kMaxQueries * partial_floats(h.d_v);
  }
  const kernels::Table& table;
  const model::Layer& layer;
  const Cache& cache;
  size_t kv_head;
  float* acts;      // [kMaxQueries] rows that the projection multiplies
  float* features;  // [kMaxQueries, padded(features)]
  float* scores;    // [kMaxQueries, kBlock]
  float* values;    // [kBlock, partial_floats]: as a partial of weight 1
  float* leaving;   // [features, kBlock]
  float* partials;  // [kMaxQueries, partial_floats]
  float* scale;     // [kMaxQueries] of each row of features
};

uint64_t Far::floats(const model::Hparams& h, const model::LayerShape& layer) {
  return uint64_t{layer.n_head_kv} * head_floats(h);
}

uint64_t Far::scratch_floats(const model::Hparams& h) {
  return kMaxQueries * (act_floats(h.d_k) + padded(h.selm.features) + kBlock + partial_floats(h.d_v) + 1) +
         kBlock * (partial_floats(h.d_v) + padded(h.selm.features));
}

Far::Far(const model::Hparams& h, const model::LayerShape& layer, float* memory)
    : h_(&h), n_head_(layer.n_head), n_head_kv_(layer.n_head_kv), memory_(memory), heads_(layer.n_head_kv) {
  clear();
}

void Far::clear() {
  std::memset(memory_, 0, n_head_kv_ * head_floats(*h_) * sizeof(float));
  const float start = h_->selm.feature_map == model::FeatureMap::favor ? kNothing : 0.0f;
  for (Head& head : heads_) {
    head.at = {0, kNone};
    head.scale = {start, start};
    head.block = head.count = 0;
    head.block_scale.fill(0.0f);
  }
}

size_t Far::left(size_t position) const {
  return position + 1 > h_->selm.window ? position + 1 - h_->selm.window : 0;
}
size_t Far::folded(size_t position) const { return left(position) / kBlock * kBlock; }

float* Far::sums(size_t kv_head, size_t which) const {
  return memory_ + kv_head * head_floats(*h_) + which * padded(h_->selm.features) * partial_floats(h_->d_v);
}
float* Far::block_features(size_t kv_head) const { return sums(kv_head, 2); }

bool Far::reaches(const Cache& cache, size_t n) const {
  for (const Head& head : heads_) {
    bool reached = false;
    for (const size_t at : head.at)
      reached = reached || (at <= folded(n) && (at >= cache.oldest() || at == folded(n)));
    if (!reached || folded(n) < cache.oldest()) return false;
  }
  return true;
}

void Far::truncate(size_t n) {
  for (Head& head : heads_) {
    for (size_t& at : head.at) {
      if (at != kNone && at > folded(n)) at = kNone;
    }
    if (head.block + head.count > n) head.count = n > head.block ? n - head.block : 0;
  }
}

void Far::settle(const kernels::Table& table, const model::Layer& layer, const Cache& cache, size_t n,
                 float* scratch) {
  for (size_t kv_head = 0; kv_head < n_head_kv_; ++kv_head)
    sums_before(Work(*h_, table, layer, cache, kv_head, scratch), folded(n), kNone);
}

void Far::settle_both(const kernels::Table& table, const model::Layer& layer, const Cache& cache, size_t n,
                      float* scratch) {
  settle(table, layer, cache, n, scratch);
  const size_t end = folded(n);
  if (end == 0 || cache.oldest() > end - kBlock) return;
  for (size_t kv_head = 0; kv_head < n_head_kv_; ++kv_head) {
    Head& head = heads_[kv_head];
    const size_t other = head.at[0] == end ? 1 : 0;
    if (head.at[other] < cache.oldest()) continue;
    const Work work(*h_, table, layer, cache, kv_head, scratch);
    while (head.at[other] < end - kBlock) fold_block(work, other, other);
  }
}

bool Far::holds(size_t end) const {
  return std::all_of(heads_.begin(), heads_.end(),
                     [end](const Head& head) { return head.at[0] == end || head.at[1] == end; });
}

void Far::place(size_t n, bool both) {
  for (Head& head : heads_) {
    head.at = {folded(n), both ? folded(n) - kBlock : kNone};
    head.block = head.count = 0;
  }
}

Far::Sums Far::sums_of(size_t kv_head, size_t end) {
  Head& head = heads_[kv_head];
  const size_t which = head.at[0] == end ? 0 : 1;
  return {&head.scale[which], {sums(kv_head, which), h_->selm.features * partial_floats(h_->d_v)}};
}

// The first n rows of work.acts to features, each row's scale apart.
void Far::map_features(const Work& work, size_t n) const {
  using model::FeatureMap;
  const model::Selm& selm = h_->selm;
  const size_t d = h_->d_k;
  const size_t width = padded(selm.features);
  const size_t rows = model::projected_rows(selm);
  const size_t act_stride = act_floats(d);
  const auto scaling = static_cast<float>(std::pow(static_cast<double>(d), -0.25));
  for (size_t i = 0; i < n; ++i) {
    float* x = work.acts + i * act_stride;
    float squares = 0.0f;
    for (size_t j = 0; j < d; ++j) squares += x[j] * scaling * (x[j] * scaling);
    const float length = std::sqrt(squares + 1e-12f);
    const float factor = scaling * std::min(selm.clamp / length, 1.0f);
    for (size_t j = 0; j < d; ++j) x[j] *= factor;
  }
  if (rows != 0) {
    const std::byte* own =
        work.layer.feature_rows.data + work.kv_head * rows * work.layer.feature_rows.row_bytes();
    work.table.matmul(quant::Type::f32, own, rows, d, reinterpret_cast<const std::byte*>(work.acts), n,
                      work.features, width);
  }
  for (size_t i = 0; i < n; ++i) {
    const float* x = work.acts + i * act_stride;
    float* f = work.features + i * width;
    work.scale[i] = 0.0f;
    if (selm.feature_map == FeatureMap::favor) {
      const float largest = *std::max_element(f, f + rows);
      std::fill(f + rows, f + width, largest);
      work.table.exponentials(f, width, largest);
      float squares = 0.0f;
      for (size_t j = 0; j < d; ++j) squares += x[j] * x[j];
      work.scale[i] = largest - squares / 2.0f;
    } else if (selm.feature_map == FeatureMap::elu1) {
      for (size_t j = 0; j < d; ++j) f[j] = x[j] > 0.0f ? x[j] + 1.0f : std::exp(x[j]);
    } else if (selm.feature_map == FeatureMap::relu) {
      for (size_t j = 0; j < rows; ++j) f[j] = std::max(f[j], 0.0f);
    } else {
      for (size_t j = 0; j < rows; ++j) f[rows + j] = -f[j];
      const float largest = *std::max_element(f, f + 2 * rows);
      std::fill(f + 2 * rows, f + width, largest);
      work.table.exponentials(f, width, largest);
      float total = 0.0f;
      for (size_t j = 0; j < 2 * rows; ++j) total += f[j];
      for (size_t j = 0; j < 2 * rows; ++j) f[j] /= total;
    }
    std::fill(f + selm.features, f + width, 0.0f);
  }
}

// Brings the block that begins at `first` to at least `count` tokens.
void Far::load_block(const Work& work, size_t first, size_t count) {
  Head& head = heads_[work.kv_head];
  if (head.block != first) {
    head.block = first;
    head.count = 0;
  }
  if (head.count >= count) return;
  const size_t begin = head.count;
  for (size_t s = begin; s < count; ++s)
    work.cache.load_key(work.table, work.kv_head, first + s, work.acts + (s - begin) * act_floats(h_->d_k));
  map_features(work, count - begin);
  float* out = block_features(work.kv_head);
  for (size_t s = begin; s < count; ++s) {
    const bool sink = first + s < h_->selm.sinks;  // those never leave
    const float* f = work.features + (s - begin) * padded(h_->selm.features);
    for (size_t j = 0; j < h_->selm.features; ++j) out[j * kBlock + s] = sink ? 0.0f : f[j];
    head.block_scale[s] = sink ? -kInfinity : work.scale[s - begin];
  }
  head.count = count;
}

// As partials of weight 1, so that a sum of them is one.
void Far::load_values(const Work& work, size_t first, size_t count) const {
  const size_t stride = partial_floats(h_->d_v);
  for (size_t s = 0; s < count; ++s) {
    float* row = work.values + s * stride;
    std::fill_n(row, stride, 0.0f);
    work.cache.load_value(work.table, work.kv_head, first + s, row);
    row[padded(h_->d_v) + 1] = 1.0f;
  }
}

// target = source and the block after it.
void Far::fold_block(const Work& work, size_t source, size_t target) {
  Head& head = heads_[work.kv_head];
  const size_t first = head.at[source];
  const size_t features = h_->selm.features;
  const size_t stride = partial_floats(h_->d_v);
  load_block(work, first, kBlock);
  load_values(work, first, kBlock);
  const float before = head.scale[source];
  const float after = std::max(before, *std::max_element(head.block_scale.begin(), head.block_scale.end()));
  float weight[kBlock];
  for (size_t s = 0; s < kBlock; ++s) weight[s] = std::exp(head.block_scale[s] - after);
  const float* block = block_features(work.kv_head);
  for (size_t j = 0; j < features; ++j)
    for (size_t s = 0; s < kBlock; ++s) work.leaving[j * kBlock + s] = block[j * kBlock + s] * weight[s];
  const float* from = sums(work.kv_head, source);
  float* to = sums(work.kv_head, target);
  const float shrink = std::exp(before - after);
  for (size_t i = 0; i < features * stride; ++i) to[i] = from[i] * shrink;
  work.table.accumulate(work.leaving, kBlock, features, work.values, stride, kBlock, to, stride, stride);
  head.scale[target] = after;
  head.at[target] = first + kBlock;
}

// Which of the two sums holds the tokens before `end`; that called `base` (kNone: neither) stays.
size_t Far::sums_before(const Work& work, size_t end, size_t base) {
  Head& head = heads_[work.kv_head];
  size_t which = kNone;
  for (size_t i = 0; i < 2; ++i) {
    if (head.at[i] <= end && (which == kNone || head.at[i] > head.at[which])) which = i;
  }
  while (head.at[which] < end) {
    const size_t target = base == kNone || which == base ? 1 - which : which;
    fold_block(work, which, target);
    which = target;
  }
  return which;
}

void Far::attend_tile(const Work& work, const float* const* queries, const size_t* positions, size_t rows,
                      size_t which, float* out) {
  Head& head = heads_[work.kv_head];
  const size_t stride = partial_floats(h_->d_v);
  const size_t width = padded(h_->selm.features);
  const size_t at = padded(h_->d_v);
  const size_t first = head.at[which];
  const size_t waiting =
      left(positions[rows - 1]) - first;  // tokens that no sum holds; most for the last row
  if (waiting > 0) {
    load_block(work, first, waiting);
    load_values(work, first, waiting);
  }
  for (size_t r = 0; r < rows; ++r)
    std::memcpy(work.acts + r * act_floats(h_->d_k), queries[r], h_->d_k * sizeof(float));
  map_features(work, rows);
  std::fill_n(out, rows * stride, 0.0f);
  std::fill_n(work.scores, rows * kBlock, 0.0f);
  work.table.accumulate(work.features, width, rows, sums(work.kv_head, which), stride, h_->selm.features, out,
                        stride, stride);
  work.table.accumulate(work.features, width, rows, block_features(work.kv_head), kBlock, h_->selm.features,
                        work.scores, kBlock, kBlock);
  for (size_t r = 0; r < rows; ++r) {
    const size_t seen = left(positions[r]) - first;
    float largest = head.scale[which];
    for (size_t s = 0; s < seen; ++s) largest = std::max(largest, head.block_scale[s]);
    const float shrink = std::exp(head.scale[which] - largest);
    for (size_t i = 0; i < stride; ++i) out[r * stride + i] *= shrink;
    float* scores = work.scores + r * kBlock;
    for (size_t s = 0; s < seen; ++s) scores[s] *= std::exp(head.block_scale[s] - largest);
    std::fill(scores + seen, scores + kBlock, 0.0f);
    work.scale[r] += largest;
  }
  work.table.accumulate(work.scores, kBlock, rows, work.values, stride, waiting, out, stride, stride);
  for (size_t r = 0; r < rows; ++r) out[r * stride + at] = work.scale[r];
}

void Far::attend(const kernels::Table& table, const model::Layer& layer, const Cache& cache, size_t kv_head,
                 const float* q, size_t position, size_t n, float* scratch, float* out) {
  const Work work(*h_, table, layer, cache, kv_head, scratch);
  const size_t stride = partial_floats(h_->d_v);
  const size_t at = padded(h_->d_v);
  const size_t group = n_head_ / n_head_kv_;
  const float share = h_->selm.feature_map == model::FeatureMap::favor
                          ? std::log(static_cast<float>(h_->selm.features))
                          : 0.0f;  // phi has a factor features^-1/2, of a query and of a key
  const size_t base = sums_before(work, folded(position), kNone);
  const float* queries[kMaxQueries];
  size_t positions[kMaxQueries];
  // Rows are the queries, token by token; those that go together find the same tokens in the sums.
  for (size_t row = 0; row < n * group;) {
    const size_t end = folded(position + row / group);
    size_t rows = 0;
    for (; rows < kMaxQueries && row + rows < n * group; ++rows) {
      const size_t token = (row + rows) / group;
      if (folded(position + token) != end) break;
      queries[rows] = q + (token * n_head_ + kv_head * group + (row + rows) % group) * h_->d_k;
      positions[rows] = position + token;
    }
    attend_tile(work, queries, positions, rows, sums_before(work, end, base), work.partials);
    for (size_t r = 0; r < rows; ++r) {
      const size_t head = kv_head * group + (row + r) % group;
      float* partial = out + ((row + r) / group * n_head_ + head) * stride;
      std::memcpy(partial, work.partials + r * stride, stride * sizeof(float));
      const bool nothing = partial[at + 1] == 0.0f;
      partial[at] = nothing ? -kInfinity : partial[at] + layer.far_gain[head] - share;
    }
    row += rows;
  }
}

}  // namespace selm::attention
