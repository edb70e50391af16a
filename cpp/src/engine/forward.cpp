// The forward pass, top to bottom. Work is cut into pieces that any thread may take; no output
// depends on which one took it.
#include <algorithm>

#include "engine/session.h"

namespace selm::engine {
namespace {

using model::Projection;

// Rows of a product that one thread takes at a time. Decoding: few large pieces, since waking and
// counting cost more than imbalance. Prompts: strips that a kernel unpacks once for all columns.
size_t rows_per_piece(size_t total_rows, size_t n_tokens, unsigned threads) {
  const size_t pieces = size_t{threads} * (n_tokens == 1 ? 4 : 8);
  const size_t rows = (total_rows + pieces - 1) / pieces;
  const size_t step = n_tokens == 1 ? 32 : 64;  // for prompts, the rows that kernels unpack at a time
  return std::max(step, (rows + step - 1) / step * step);
}

// Less than this is done before another thread could have begun.
constexpr size_t kAlone = size_t{1} << 15;         // multiplications of a product
constexpr size_t kAloneNumbers = size_t{1} << 13;  // numbers of all tokens' rows

}  // namespace

template <class Work>
void Session::for_each_token(size_t n, size_t numbers, const Work& work) {
  if (n == 1 || n * numbers <= kAloneNumbers) {
    for (size_t i = 0; i < n; ++i) work(i);
    return;
  }
  pool_->run(n, [&](size_t i, unsigned) { work(i); });
}

template <class Prepare>
void Session::multiply(size_t n, bool batched, std::span<const Part> parts, const Prepare& prepare) {
  const size_t width = parts[0].matrix->columns;
  const auto method_of = [&](const Part& p) { return kernels::method(kernels_, p.matrix->type, batched); };
  bool wanted[kernels::kActFormats] = {};
  size_t total_rows = 0;
  for (const Part& p : parts) {
    wanted[static_cast<size_t>(method_of(p).format)] = true;
    total_rows += p.matrix->rows;
  }
  for_each_token(n, width, [&](size_t i) {
    const float* row = prepare(i);
    for (uint32_t f = 0; f < kernels::kActFormats; ++f) {
      const auto format = static_cast<kernels::ActFormat>(f);
      if (wanted[f])
        kernels_.quantize_row(format, row, width, acts_[f] + i * kernels::act_row_bytes(format, width));
    }
  });

  const size_t step =
      n == 1 && total_rows * width < kAlone ? total_rows : rows_per_piece(total_rows, n, options_.threads);
  size_t pieces = 0;
  for (const Part& p : parts) pieces += (p.matrix->rows + step - 1) / step;
  pool_->run(pieces, [&](size_t piece, unsigned) {
    const Part* p = parts.data();
    for (;; ++p) {
      const size_t own = (p->matrix->rows + step - 1) / step;
      if (piece < own) break;
      piece -= own;
    }
    const model::Matrix& m = *p->matrix;
    const size_t first = piece * step;
    const size_t rows = std::min<size_t>(step, m.rows - first);
    const auto [format, matmul] = method_of(*p);
    const std::byte* acts = acts_[static_cast<size_t>(format)];
    matmul(m.type, m.data + first * m.row_bytes(), rows, width, acts, n, p->out + first, m.rows);
  });
}

template <class Prepare>
void Session::project(const model::Layer& layer, size_t n, bool batched, std::span<const Product> products,
                      const Prepare& prepare) {
  // First what the input itself is multiplied with: whole weights and the first of two factors.
  Part parts[kMaxParts] = {};
  struct Second {
    Part part;
    const float* low;
    float* sum;  // what the product is added to; nullptr: it is the output
    float scale;
  } seconds[kMaxParts] = {};
  size_t n_parts = 0;
  size_t n_seconds = 0;
  float* low = low_;
  const auto through = [&](const model::LowRank& pair, float* out, float* sum, float scale) {
    parts[n_parts++] = {&pair.a, low};
    seconds[n_seconds++] = {{&pair.b, out}, low, sum, scale};
    low += n * pair.a.rows;
  };
  for (const Product& product : products) {
    const model::Weight& weight = *product.weight;
    if (weight.factors) {
      through(weight.factors, product.out, nullptr, 1.0f);
    } else {
      parts[n_parts++] = {&weight.whole, product.out};
    }
    if (weight.delta) through(weight.delta, delta_, product.out, 1.0f);
    for (const ActiveAdapter& active : adapters_) {
      if (!product.adaptable) break;
      const model::LowRank& pair = active.adapter->pair(layer.index, product.which);
      if (pair) through(pair, delta_, product.out, active.scale * active.adapter->scale(pair));
    }
  }
  multiply(n, batched, std::span(parts, n_parts), prepare);
  for (const Second& second : std::span(seconds, n_seconds)) {
    const model::Matrix& m = *second.part.matrix;
    multiply(n, batched, std::span(&second.part, 1), [&](size_t i) { return second.low + i * m.columns; });
    if (second.sum == nullptr) continue;
    for_each_token(n, m.rows, [&](size_t i) {
      float* row = delta_ + i * m.rows;
      for (size_t r = 0; r < m.rows && second.scale != 1.0f; ++r) row[r] *= second.scale;
      kernels_.add(second.sum + i * m.rows, row, m.rows);
    });
  }
}

void Session::embed_tokens(std::span<const Token> tokens) {
  const model::Matrix& table = model_.token_embd();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::byte* row = table.data + static_cast<size_t>(tokens[i]) * table.row_bytes();
    kernels_.dequantize_row(table.type, row, x_ + i * table.columns, table.columns);
  }
}

// Biases, per-head norms and rotation; keys and values go into the cache.
void Session::attention_inputs(const model::Layer& layer, LayerState& state, size_t position, size_t n) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t n_kv = layer.shape.n_head_kv;
  const auto finish = [&](float* head, const model::Vector& norm, const float* cos_sin) {
    if (!norm.empty()) kernels_.rms_norm(head, norm.data(), head, h.d_k, h.rms_eps);
    kernels_.rope(head, cos_sin, h.rope.n_rot, h.rope.neox);
  };
  for_each_token(n, n_head * h.d_k, [&](size_t i) {
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
      state.cache.store(kernels_, head, position + i, k + head * h.d_k, v + head * h.d_v);
    }
  });
  state.cache.wrote(position + n);
}

void Session::add_residual(size_t n, const model::Vector& bias) {
  const size_t width = model_.hparams().n_embd;
  for_each_token(n, width, [&](size_t i) {
    if (!bias.empty()) kernels_.add(projected_ + i * width, bias.data(), width);
    kernels_.add(x_ + i * width, projected_ + i * width, width);
  });
}

Status Session::run_layers(std::span<const model::Layer> layers, LayerState* states, size_t position,
                           size_t n, bool batched) {
  const model::Hparams& h = model_.hparams();
  const size_t width = h.n_embd;
  for (size_t i = 0; i < n; ++i) rope_.fill(position + i, cos_sin_ + i * h.rope.n_rot);

  for (size_t index = 0; index < layers.size(); ++index) {
    SELM_TRY(check_interrupt());
    const model::Layer& layer = layers[index];
    LayerState& state = states[index];
    const auto normed_by = [&](const model::Vector& weight) {
      return [this, &weight, width](size_t i) {
        kernels_.rms_norm(x_ + i * width, weight.data(), normed_ + i * width, width,
                          model_.hparams().rms_eps);
        return static_cast<const float*>(normed_ + i * width);
      };
    };

    const Product inputs[] = {{&layer.q, q_, Projection::q},
                              {&layer.k, k_, Projection::k},
                              {&layer.v, v_, Projection::v},
                              {&layer.head_gate, head_gates_, Projection::q, false}};
    const bool gated = layer.head_gate.whole.data != nullptr;
    project(layer, n, batched, std::span(inputs, gated ? 4 : 3), normed_by(layer.attn_norm));
    attention_inputs(layer, state, position, n);
    attend(layer, state, position, n);
    const size_t attended = layer.attn_output.whole.columns;
    const Product output[] = {{&layer.attn_output, projected_, Projection::attn_output}};
    project(layer, n, batched, output,
            [&](size_t i) { return static_cast<const float*>(attended_ + i * attended); });
    add_residual(n, layer.attn_output_bias);

    const size_t n_ff = layer.shape.n_ff;
    const Product gate_up[] = {{&layer.ffn_gate, gate_, Projection::ffn_gate},
                               {&layer.ffn_up, up_, Projection::ffn_up}};
    project(layer, n, batched, gate_up, normed_by(layer.ffn_norm));
    const Product down[] = {{&layer.ffn_down, projected_, Projection::ffn_down}};
    project(layer, n, batched, down, [&](size_t i) {
      float* gate = gate_ + i * n_ff;
      kernels_.silu_mul(gate, up_ + i * n_ff, gate, n_ff);
      return static_cast<const float*>(gate);
    });
    add_residual(n, {});
  }
  return {};
}

void Session::normalise(const model::Vector& norm, size_t first, size_t n) {
  const size_t width = model_.hparams().n_embd;
  for_each_token(n, width, [&](size_t i) {
    float* row = x_ + (first + i) * width;
    kernels_.rms_norm(row, norm.data(), row, width, model_.hparams().rms_eps);
  });
}

void Session::head(const model::Matrix& matrix, size_t first, size_t n, float* logits) {
  const size_t width = model_.hparams().n_embd;
  const Part output[] = {{&matrix, logits}};
  multiply(n, batched(n), output, [&](size_t i) { return x_ + (first + i) * width; });
}

}  // namespace selm::engine
