// Experts above the trunk: who speaks, and how one that skipped tokens catches up.
//
// The trunk runs once for every token, and what it made of the last ones is kept. An expert's layers run
// only when it is to speak: then over all tokens it has not seen, in batches, each token by the
// arithmetic (of single tokens or of many) by which the trunk was run for it. So its states are bit for
// bit those of an expert that never skipped one.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/session.h"

namespace selm::engine {
namespace {

constexpr float kScoreEpsilon = 1e-5f;

void layer_norm(const float* x, const model::ScoreHead& head, size_t n, float* out) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
  const double mean = sum / static_cast<double>(n);
  double squares = 0;
  for (size_t i = 0; i < n; ++i)
    squares += (static_cast<double>(x[i]) - mean) * (static_cast<double>(x[i]) - mean);
  const auto scale = static_cast<float>(
      1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(kScoreEpsilon)));
  for (size_t i = 0; i < n; ++i)
    out[i] = (x[i] - static_cast<float>(mean)) * scale * head.norm[i] + head.norm_bias[i];
}

}  // namespace

// Before tokens up to `end` come: experts that would lose what they have not seen catch up.
Status Session::make_room(size_t end) {
  for (size_t e = 0; e < seen_.size(); ++e) {
    if (seen_[e] + backlog_ < end) SELM_TRY(catch_up(e, std::min(end - 1, trunk_end_), SIZE_MAX));
  }
  return {};
}

void Session::remember_trunk(size_t position, size_t n) {
  const size_t width = model_.hparams().n_embd;
  for (size_t i = 0; i < n; ++i) {
    const size_t slot = (position + i) % backlog_;
    std::memcpy(trunk_ + slot * width, x_ + i * width, width * sizeof(float));
    batched_[slot] = batched(n);
  }
  trunk_end_ = position + n;
  trunk_written_ = std::max(trunk_written_, trunk_end_);
}

// The expert's layers over all tokens before `end` that they have not seen; what they make of those from
// `kept` on goes to hidden_.
Status Session::catch_up(size_t expert, size_t end, size_t kept) {
  const size_t width = model_.hparams().n_embd;
  const std::span<const model::Layer> layers = model_.experts()[expert].layers;
  LayerState* states = states_.data() + model_.trunk().size() + expert * layers.size();
  float* hidden = hidden_ + expert * options_.batch * width;
  while (seen_[expert] < end) {
    const size_t from = seen_[expert];
    const uint8_t how = batched_[from % backlog_];
    size_t n = 0;
    for (; from + n < end && n < options_.batch && batched_[(from + n) % backlog_] == how; ++n)
      std::memcpy(x_ + n * width, trunk_ + (from + n) % backlog_ * width, width * sizeof(float));
    SELM_TRY(run_layers(layers, states, from, n, how != 0));
    seen_[expert] = from + n;
    for (size_t i = kept > from ? std::min(kept - from, n) : 0; i < n; ++i) {
      kernels_.rms_norm(x_ + i * width, model_.output_norm().data(), hidden + (from + i - kept) * width,
                        width, model_.hparams().rms_eps);
    }
  }
  return {};
}

Status Session::catch_up_all() {
  for (size_t e = 0; e < seen_.size(); ++e) {
    const Status status = catch_up(e, tokens_.size(), SIZE_MAX);
    if (!status.ok()) {
      rewind(tokens_.size());
      return status;
    }
  }
  return {};
}

// scores_ of rows [0, n): of the trunk's stream from `position` on, or of what each expert made of it.
void Session::score(size_t position, size_t n) {
  const size_t width = model_.hparams().n_embd;
  const size_t widest = score_width();
  pool_->run(seen_.size(), [&](size_t e, unsigned) {
    const model::ScoreHead& head = model_.experts()[e].score;
    float* const rows = score_rows_ + e * 2 * kMaxVerified * widest;
    float* const next = rows + kMaxVerified * widest;
    std::byte* const acts = score_acts_ + e * score_act_bytes();
    for (size_t first = 0; first < n; first += kMaxVerified) {
      const size_t count = std::min(kMaxVerified, n - first);
      for (size_t i = 0; i < count; ++i) {
        const float* x = model_.hparams().selm.full_route
                             ? hidden_ + (e * options_.batch + first + i) * width
                             : trunk_ + (position + first + i) % backlog_ * width;
        layer_norm(x, head, width, rows + i * width);
      }
      float* in = rows;
      float* out = next;
      for (size_t l = 0; l < head.weights.size(); ++l) {
        const model::Matrix& m = head.weights[l];
        const auto [format, matmul] = kernels::method(kernels_, m.type, false);
        const size_t stride = kernels::act_row_bytes(format, m.columns);
        for (size_t i = 0; i < count; ++i)
          kernels_.quantize_row(format, in + i * m.columns, m.columns, acts + i * stride);
        matmul(m.type, m.data, m.rows, m.columns, acts, count, out, m.rows);
        for (size_t i = 0; i < count * m.rows; ++i) {
          out[i] += head.biases[l][i % m.rows];
          if (l + 1 < head.weights.size()) out[i] = std::max(out[i], 0.0f);
        }
        std::swap(in, out);
      }
      std::copy_n(in, count, scores_ + e * options_.batch + first);
    }
  });
}

// The highest score, the first of equals; who spoke last has a bonus.
void Session::choose_speakers(size_t position, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const int last = position + i == 0 ? -1 : speakers_[position + i - 1];
    size_t best = 0;
    float highest = 0;
    for (size_t e = 0; e < seen_.size(); ++e) {
      const float bonus = static_cast<int>(e) == last ? model_.hparams().selm.stickiness : 0.0f;
      const float score = scores_[e * options_.batch + i] + bonus;
      if (e == 0 || score > highest) {
        best = e;
        highest = score;
      }
    }
    speakers_[position + i] = static_cast<int8_t>(best);
  }
}

Status Session::run_above(size_t position, size_t n, size_t wanted) {
  const size_t width = model_.hparams().n_embd;
  if (seen_.empty()) {
    normalise(model_.output_norm(), wanted, n - wanted);
    return {};
  }
  remember_trunk(position, n);
  const bool asked = asked_ < seen_.size();
  if (asked) {
    std::fill_n(speakers_.begin() + static_cast<std::ptrdiff_t>(position), n, static_cast<int8_t>(asked_));
  } else {
    for (size_t e = 0; model_.hparams().selm.full_route && e < seen_.size(); ++e)
      SELM_TRY(catch_up(e, position + n, position));
    score(position, n);
    choose_speakers(position, n);
  }
  for (size_t i = wanted; i < n; ++i)
    SELM_TRY(catch_up(static_cast<size_t>(speakers_[position + i]), position + n, position));
  for (size_t i = wanted; i < n; ++i) {
    const size_t row = static_cast<size_t>(speakers_[position + i]) * options_.batch + i;
    std::memcpy(x_ + i * width, hidden_ + row * width, width * sizeof(float));
  }
  return {};
}

}  // namespace selm::engine
