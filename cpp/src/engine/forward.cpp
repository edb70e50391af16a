// The forward pass, top to bottom. Work is cut into pieces that any thread may take; no output
// depends on which one took it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/session.h"

namespace selm::engine {
namespace {

// Rows of a product that one thread takes at a time. Decoding: few large pieces, since waking and
// counting cost more than imbalance. Prompts: strips that a kernel unpacks once for all columns.
size_t rows_per_piece(size_t total_rows, size_t n_tokens, unsigned threads) {
  const size_t pieces = size_t{threads} * (n_tokens == 1 ? 4 : 8);
  const size_t rows = (total_rows + pieces - 1) / pieces;
  constexpr size_t kStep = 32;  // the strip that kernels unpack for prompts
  return std::max(kStep, (rows + kStep - 1) / kStep * kStep);
}

}  // namespace

template <class Work>
void Session::for_each_token(size_t n, const Work& work) {
  if (n == 1) {
    work(size_t{0});
    return;
  }
  pool_->run(n, [&](size_t i, unsigned) { work(i); });
}

template <class Prepare>
void Session::project(size_t n, std::span<const Product> products, const Prepare& prepare) {
  const size_t width = products[0].matrix->columns;
  bool wanted[3] = {};
  size_t total_rows = 0;
  for (const Product& p : products) {
    wanted[static_cast<size_t>(kernels::act_format(p.matrix->type))] = true;
    total_rows += p.matrix->rows;
  }
  for_each_token(n, [&](size_t i) {
    const float* row = prepare(i);
    for (uint32_t f = 0; f < 3; ++f) {
      const auto format = static_cast<kernels::ActFormat>(f);
      if (wanted[f])
        kernels_.quantize_row(format, row, width, acts_[f] + i * kernels::act_row_bytes(format, width));
    }
  });

  const size_t step = rows_per_piece(total_rows, n, options_.threads);
  size_t pieces = 0;
  for (const Product& p : products) pieces += (p.matrix->rows + step - 1) / step;
  pool_->run(pieces, [&](size_t piece, unsigned) {
    const Product* p = products.data();
    for (;; ++p) {
      const size_t own = (p->matrix->rows + step - 1) / step;
      if (piece < own) break;
      piece -= own;
    }
    const model::Matrix& m = *p->matrix;
    const size_t first = piece * step;
    const size_t rows = std::min<size_t>(step, m.rows - first);
    const std::byte* acts = acts_[static_cast<size_t>(kernels::act_format(m.type))];
    kernels_.matmul(m.type, m.data + first * m.row_bytes(), rows, width, acts, n, p->out + first, p->ldo);
  });
}

void Session::embed_tokens(std::span<const Token> tokens) {
  const model::Matrix& table = model_.token_embd();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::byte* row = table.data + static_cast<size_t>(tokens[i]) * table.row_bytes();
    kernels_.dequantize_row(table.type, row, x_ + i * table.columns, table.columns);
  }
}

// Biases, per-head norms and rotation; keys and values go into the cache.
void Session::attention_inputs(const model::Layer& layer, const KvSlice& kv, size_t position, size_t n) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t n_kv = layer.shape.n_head_kv;
  const size_t slot = std::max(h.d_k, h.d_v);
  const auto finish = [&](float* head, const model::Vector& norm, const float* cos_sin) {
    if (!norm.empty()) kernels_.rms_norm(head, norm.data(), head, h.d_k, h.rms_eps);
    kernels_.rope(head, cos_sin, h.rope.n_rot, h.rope.neox);
  };
  const auto store = [&](size_t element, const float* values, size_t count) {
    if (options_.kv_type == KvType::f16) {
      kernels_.to_f16(values, reinterpret_cast<uint16_t*>(kv_.data()) + element, count);
    } else {
      std::memcpy(reinterpret_cast<float*>(kv_.data()) + element, values, count * sizeof(float));
    }
  };
  for_each_token(n, [&](size_t i) {
    float* q = q_ + i * n_head * h.d_k;
    float* k = k_ + i * n_kv * h.d_k;
    float* v = v_ + i * n_kv * h.d_v;
    if (!layer.q_bias.empty()) kernels_.add(q, layer.q_bias.data(), n_head * h.d_k);
    if (!layer.k_bias.empty()) kernels_.add(k, layer.k_bias.data(), n_kv * h.d_k);
    if (!layer.v_bias.empty()) kernels_.add(v, layer.v_bias.data(), n_kv * h.d_v);
    const float* cos_sin = cos_sin_ + i * h.rope.n_rot;
    for (size_t head = 0; head < n_head; ++head) finish(q + head * h.d_k, layer.q_norm, cos_sin);
    for (size_t head = 0; head < n_kv; ++head) {
      finish(k + head * h.d_k, layer.k_norm, cos_sin);
      const size_t row = head * options_.context + position + i;
      store(kv.k_offset + row * slot, k + head * h.d_k, h.d_k);
      store(kv.v_offset + row * slot, v + head * h.d_v, h.d_v);
    }
  });
}

void Session::attend(const model::Layer& layer, const KvSlice& kv, size_t position, size_t n) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t group = n_head / layer.shape.n_head_kv;
  const size_t slot = std::max(h.d_k, h.d_v);
  const float scale = 1.0f / std::sqrt(static_cast<float>(h.d_k));
  const size_t scores_stride = (options_.context + 15) / 16 * 16;
  // Heads that share keys follow each other, so that one core finds them in its cache.
  pool_->run(n * n_head, [&](size_t piece, unsigned worker) {
    const size_t i = piece / n_head;
    const size_t head = piece % n_head;
    const size_t first = head / group * options_.context;
    const float* q = q_ + (i * n_head + head) * h.d_k;
    float* out = attended_ + (i * n_head + head) * h.d_v;
    float* scores = scores_ + worker * scores_stride;
    const size_t k_at = kv.k_offset + first * slot;
    const size_t v_at = kv.v_offset + first * slot;
    const size_t n_pos = position + i + 1;
    if (options_.kv_type == KvType::f16) {
      const auto* cache = reinterpret_cast<const uint16_t*>(kv_.data());
      kernels_.attend_f16(q, cache + k_at, cache + v_at, slot, n_pos, h.d_k, h.d_v, scale, scores, out);
    } else {
      const auto* cache = reinterpret_cast<const float*>(kv_.data());
      kernels_.attend_f32(q, cache + k_at, cache + v_at, slot, n_pos, h.d_k, h.d_v, scale, scores, out);
    }
  });
}

void Session::add_residual(size_t n, const model::Vector& bias) {
  const size_t width = model_.hparams().n_embd;
  for_each_token(n, [&](size_t i) {
    if (!bias.empty()) kernels_.add(projected_ + i * width, bias.data(), width);
    kernels_.add(x_ + i * width, projected_ + i * width, width);
  });
}

Status Session::run_layers(std::span<const Token> tokens, size_t position) {
  const model::Hparams& h = model_.hparams();
  const size_t n = tokens.size();
  const size_t width = h.n_embd;
  embed_tokens(tokens);
  for (size_t i = 0; i < n; ++i) rope_.fill(position + i, cos_sin_ + i * h.rope.n_rot);

  for (size_t index = 0; index < model_.layers().size(); ++index) {
    SELM_TRY(check_interrupt());
    const model::Layer& layer = model_.layers()[index];
    const KvSlice& kv = kv_slices_[index];
    const auto normed_by = [&](const model::Vector& weight) {
      return [this, &weight, width](size_t i) {
        kernels_.rms_norm(x_ + i * width, weight.data(), normed_ + i * width, width,
                          model_.hparams().rms_eps);
        return static_cast<const float*>(normed_ + i * width);
      };
    };

    const Product qkv[] = {
        {&layer.q, q_, layer.q.rows}, {&layer.k, k_, layer.k.rows}, {&layer.v, v_, layer.v.rows}};
    project(n, qkv, normed_by(layer.attn_norm));
    attention_inputs(layer, kv, position, n);
    attend(layer, kv, position, n);
    const size_t attended = layer.attn_output.columns;
    const Product output[] = {{&layer.attn_output, projected_, width}};
    project(n, output, [&](size_t i) { return static_cast<const float*>(attended_ + i * attended); });
    add_residual(n, layer.attn_output_bias);

    const size_t n_ff = layer.shape.n_ff;
    const Product gate_up[] = {{&layer.ffn_gate, gate_, n_ff}, {&layer.ffn_up, up_, n_ff}};
    project(n, gate_up, normed_by(layer.ffn_norm));
    const Product down[] = {{&layer.ffn_down, projected_, width}};
    project(n, down, [&](size_t i) {
      float* gate = gate_ + i * n_ff;
      kernels_.silu_mul(gate, up_ + i * n_ff, gate, n_ff);
      return static_cast<const float*>(gate);
    });
    add_residual(n, {});
  }
  return {};
}

void Session::head(size_t first, size_t n, float* logits) {
  const size_t width = model_.hparams().n_embd;
  const Product output[] = {{&model_.output(), logits, model_.n_vocab()}};
  project(n, output, [&](size_t i) {
    float* normed = normed_ + i * width;
    kernels_.rms_norm(x_ + (first + i) * width, model_.output_norm().data(), normed, width,
                      model_.hparams().rms_eps);
    return static_cast<const float*>(normed);
  });
}

}  // namespace selm::engine
