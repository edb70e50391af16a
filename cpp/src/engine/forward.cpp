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
  const size_t step = n_tokens == 1 ? 32 : 64;  // for prompts, the rows that kernels unpack at a time
  return std::max(step, (rows + step - 1) / step * step);
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
  const auto method_of = [&](const Product& p) {
    return kernels::method(kernels_, p.matrix->type, n, options_.exact);
  };
  bool wanted[kernels::kActFormats] = {};
  size_t total_rows = 0;
  for (const Product& p : products) {
    wanted[static_cast<size_t>(method_of(p).format)] = true;
    total_rows += p.matrix->rows;
  }
  for_each_token(n, [&](size_t i) {
    const float* row = prepare(i);
    for (uint32_t f = 0; f < kernels::kActFormats; ++f) {
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
    const auto [format, matmul] = method_of(*p);
    const std::byte* acts = acts_[static_cast<size_t>(format)];
    matmul(m.type, m.data + first * m.row_bytes(), rows, width, acts, n, p->out + first, p->ldo);
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
  const size_t stride = kernels::kv_row_bytes(options_.kv_type, std::max(h.d_k, h.d_v));
  const auto finish = [&](float* head, const model::Vector& norm, const float* cos_sin) {
    if (!norm.empty()) kernels_.rms_norm(head, norm.data(), head, h.d_k, h.rms_eps);
    kernels_.rope(head, cos_sin, h.rope.n_rot, h.rope.neox);
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
      store_kv(k + head * h.d_k, h.d_k, kv_.data() + kv.k_offset + row * stride);
      store_kv(v + head * h.d_v, h.d_v, kv_.data() + kv.v_offset + row * stride);
    }
  });
}

void Session::store_kv(const float* x, size_t n, std::byte* out) const {
  switch (options_.kv_type) {
    case KvType::f16:
      return kernels_.to_f16(x, reinterpret_cast<uint16_t*>(out), n);
    case KvType::f32:
      std::memcpy(out, x, n * sizeof(float));
      return;
    case KvType::q8_0:
      return kernels::quantize_q8_0(x, n, out);
  }
}

void Session::attend_chunk(const model::Layer& layer, const KvSlice& kv, const QueryTile& tile,
                           size_t position, size_t from, unsigned worker, float* partials) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t stride = kernels::kv_row_bytes(options_.kv_type, std::max(h.d_k, h.d_v));
  const size_t kv_head = tile.head / (n_head / layer.shape.n_head_kv);
  const size_t seen = position + tile.first + tile.n;  // by the tile's last token
  const float* queries[kernels::kMaxQueries];
  uint32_t visible[kernels::kMaxQueries];
  size_t rows = 0;
  for (size_t i = tile.first; i < tile.first + tile.n; ++i) {
    const size_t end = std::min(from + kernels::kChunk, position + i + 1);
    for (size_t head = tile.head; head < tile.head + tile.n_heads; ++head, ++rows) {
      queries[rows] = q_ + (i * n_head + head) * h.d_k;
      visible[rows] = end > from ? static_cast<uint32_t>(end - from) : 0;
    }
  }
  const size_t at = (kv_head * options_.context + from) * stride;
  const kernels::AttentionChunk chunk{options_.kv_type,
                                      kv_.data() + kv.k_offset + at,
                                      kv_.data() + kv.v_offset + at,
                                      stride,
                                      std::min(kernels::kChunk, seen - from),
                                      h.d_k,
                                      h.d_v,
                                      1.0f / std::sqrt(static_cast<float>(h.d_k))};
  kernels_.attend(chunk, queries, visible, rows, scratch_of(worker), partials);
}

// Tokens and heads that share a KV head go together, through the chunks in turn.
void Session::attend(const model::Layer& layer, const KvSlice& kv, size_t position, size_t n) {
  if (n == 1) return attend_decoding(layer, kv, position);
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t group = n_head / layer.shape.n_head_kv;
  const size_t heads = std::min(group, kernels::kMaxQueries);
  const size_t blocks = (group + heads - 1) / heads;  // of heads, in a group
  const size_t tokens = kernels::kMaxQueries / heads;
  const size_t tiles = (n + tokens - 1) / tokens;
  const size_t stride = kernels::partial_floats(h.d_v);
  pool_->run(layer.shape.n_head_kv * blocks * tiles, [&](size_t piece, unsigned worker) {
    const size_t block = piece / tiles % blocks;
    const size_t first = (tiles - 1 - piece % tiles) * tokens;  // the longest first
    const QueryTile tile{first, std::min(tokens, n - first), piece / tiles / blocks * group + block * heads,
                         std::min(heads, group - block * heads)};
    const size_t rows = tile.n * tile.n_heads;
    float* partials = scratch_of(worker) + kernels::attention_scratch_floats(h.d_k, h.d_v);
    float* states = partials + kernels::kMaxQueries * stride;
    const size_t seen = position + first + tile.n;
    for (size_t from = 0; from < seen; from += kernels::kChunk) {
      attend_chunk(layer, kv, tile, position, from, worker, from == 0 ? states : partials);
      for (size_t r = 0; from != 0 && r < rows; ++r)
        kernels::fold_partial(states + r * stride, partials + r * stride, h.d_v);
    }
    for (size_t r = 0; r < rows; ++r) {
      const size_t row = (first + r / tile.n_heads) * n_head + tile.head + r % tile.n_heads;
      kernels::finish_partial(states + r * stride, h.d_v, attended_ + row * h.d_v);
    }
  });
}

// One token: the threads share the chunks, so that a long context keeps all of them busy.
void Session::attend_decoding(const model::Layer& layer, const KvSlice& kv, size_t position) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t group = n_head / layer.shape.n_head_kv;
  const size_t heads = std::min(group, kernels::kMaxQueries);
  const size_t blocks = (group + heads - 1) / heads;
  const size_t n_chunks = position / kernels::kChunk + 1;
  const size_t stride = kernels::partial_floats(h.d_v);
  pool_->run(layer.shape.n_head_kv * blocks * n_chunks, [&](size_t piece, unsigned worker) {
    const size_t chunk = piece % n_chunks;
    const size_t block = piece / n_chunks % blocks;
    const QueryTile tile{0, 1, piece / n_chunks / blocks * group + block * heads,
                         std::min(heads, group - block * heads)};
    attend_chunk(layer, kv, tile, position, chunk * kernels::kChunk, worker,
                 partials_ + (chunk * n_head + tile.head) * stride);
  });
  for (size_t head = 0; head < n_head; ++head) {
    float* state = partials_ + head * stride;
    for (size_t chunk = 1; chunk < n_chunks; ++chunk)
      kernels::fold_partial(state, partials_ + (chunk * n_head + head) * stride, h.d_v);
    kernels::finish_partial(state, h.d_v, attended_ + head * h.d_v);
  }
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
