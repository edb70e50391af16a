// Attention of the forward pass: near tokens by softmax, far ones by their sums, in one normaliser.
// The parts of a query are folded in one order: chunks of near positions, sinks, far.
#include <algorithm>
#include <cmath>

#include "engine/session.h"

namespace selm::engine {
namespace {

using kernels::kChunk;

// The first position that the query at `position` sees in the cache (the sinks aside).
size_t lowest(const model::Hparams& h, const model::Layer& layer, size_t position) {
  if (layer.shape.attention == model::Attention::softmax || position + 1 <= h.selm.window) return 0;
  return position + 1 - h.selm.window;
}

// How the heads that share a KV head go together.
struct Grouping {
  size_t group, heads, blocks;  // query heads of a KV head; of a tile; tiles for one token
  explicit Grouping(const model::LayerShape& shape)
      : group(shape.n_head / shape.n_head_kv),
        heads(std::min(group, kernels::kMaxQueries)),
        blocks((group + heads - 1) / heads) {}
};

}  // namespace

// The rows of a tile, token by token, and what each sees.
struct Session::TileRows {
  template <class See>
  TileRows(const float* q, size_t d_k, size_t n_head, const QueryTile& tile, const See& see) {
    for (size_t i = tile.first; i < tile.first + tile.n; ++i) {
      for (size_t head = tile.head; head < tile.head + tile.n_heads; ++head, ++count) {
        queries[count] = q + (i * n_head + head) * d_k;
        visible[count] = see(i);
      }
    }
  }
  const float* queries[kernels::kMaxQueries];
  kernels::Visible visible[kernels::kMaxQueries];
  size_t count = 0;
};

// Query heads of a tile over the chunk that begins at `from`; one partial for each row.
void Session::attend_chunk(const model::Layer& layer, const LayerState& state, const QueryTile& tile,
                           size_t position, size_t from, unsigned worker, float* partials) {
  const model::Hparams& h = model_.hparams();
  const TileRows rows(q_, h.d_k, layer.shape.n_head, tile, [&](size_t i) {
    const size_t begin = std::max(from, lowest(h, layer, position + i));
    const size_t end = std::max(begin, std::min(from + kChunk, position + i + 1));
    return kernels::Visible{static_cast<uint32_t>(begin - from), static_cast<uint32_t>(end - from)};
  });
  const size_t seen = position + tile.first + tile.n;  // by the tile's last token
  const size_t kv_head = tile.head / (layer.shape.n_head / layer.shape.n_head_kv);
  const kernels::AttentionChunk chunk = state.cache.chunk(kv_head, from, std::min(kChunk, seen - from));
  kernels_.attend(chunk, rows.queries, rows.visible, rows.count, scratch_of(worker), partials);
}

// The first tokens, for queries whose window has left them behind; false where there are none.
bool Session::attend_sinks(const model::Layer& layer, const LayerState& state, const QueryTile& tile,
                           size_t position, unsigned worker, float* partials) {
  const model::Hparams& h = model_.hparams();
  const size_t sinks = state.cache.shape().sinks;
  const size_t most = std::min(sinks, lowest(h, layer, position + tile.first + tile.n - 1));
  if (most == 0) return false;
  const TileRows rows(q_, h.d_k, layer.shape.n_head, tile, [&](size_t i) {
    const size_t end = std::min(sinks, lowest(h, layer, position + i));
    return kernels::Visible{0, static_cast<uint32_t>(end)};
  });
  const kernels::AttentionChunk chunk =
      state.cache.sinks(tile.head / (layer.shape.n_head / layer.shape.n_head_kv), most);
  kernels_.attend(chunk, rows.queries, rows.visible, rows.count, scratch_of(worker), partials);
  return true;
}

void Session::attend_far(const model::Layer& layer, LayerState& state, size_t kv_head, size_t position,
                         size_t n, unsigned worker) {
  state.far->attend(kernels_, layer, state.cache, kv_head, q_, position, n, scratch_of(worker), far_);
}

// Folds the far part of a tile's rows and writes what the heads attended to.
void Session::finish_heads(const model::Layer& layer, const QueryTile& tile, float* states) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t stride = kernels::partial_floats(h.d_v);
  for (size_t r = 0; r < tile.n * tile.n_heads; ++r) {
    const size_t head = tile.head + r % tile.n_heads;
    const size_t row = (tile.first + r / tile.n_heads) * n_head + head;
    float* state = states + r * stride;
    float* out = attended_ + row * h.d_v;
    if (layer.shape.attention == model::Attention::performer)
      kernels::fold_partial(state, far_ + row * stride, h.d_v);
    kernels::finish_partial(state, h.d_v, out);
    if (layer.head_gate.whole.data == nullptr) continue;
    const float gate = 1.0f / (1.0f + std::exp(-(head_gates_[row] + layer.head_gate_bias[head])));
    for (size_t d = 0; d < h.d_v; ++d) out[d] *= gate;
  }
}

void Session::attend(const model::Layer& layer, LayerState& state, size_t position, size_t n) {
  if (n == 1) return attend_decoding(layer, state, position);
  if (state.far) {
    pool_->run(layer.shape.n_head_kv, [&](size_t kv_head, unsigned worker) {
      attend_far(layer, state, kv_head, position, n, worker);
    });
  }
  attend_prompt(layer, state, position, n);
}

// Tokens and heads that share a KV head go together, through the chunks in turn.
void Session::attend_prompt(const model::Layer& layer, const LayerState& state, size_t position, size_t n) {
  const model::Hparams& h = model_.hparams();
  const Grouping by(layer.shape);
  const size_t tokens = kernels::kMaxQueries / by.heads;
  const size_t tiles = (n + tokens - 1) / tokens;
  const size_t stride = kernels::partial_floats(h.d_v);
  pool_->run(layer.shape.n_head_kv * by.blocks * tiles, [&](size_t piece, unsigned worker) {
    const size_t block = piece / tiles % by.blocks;
    const size_t first = (tiles - 1 - piece % tiles) * tokens;  // the longest first
    const QueryTile tile{first, std::min(tokens, n - first),
                         piece / tiles / by.blocks * by.group + block * by.heads,
                         std::min(by.heads, by.group - block * by.heads)};
    float* partials = scratch_of(worker) + kernels::attention_scratch_floats(h.d_k, h.d_v);
    float* states = partials + kernels::kMaxQueries * stride;
    const auto fold = [&] {
      for (size_t r = 0; r < tile.n * tile.n_heads; ++r)
        kernels::fold_partial(states + r * stride, partials + r * stride, h.d_v);
    };
    const size_t seen = position + first + tile.n;
    const size_t start = lowest(h, layer, position + first) / kChunk * kChunk;
    for (size_t from = start; from < seen; from += kChunk) {
      attend_chunk(layer, state, tile, position, from, worker, from == start ? states : partials);
      if (from != start) fold();
    }
    if (attend_sinks(layer, state, tile, position, worker, partials)) fold();
    finish_heads(layer, tile, states);
  });
}

// One token: the threads share the chunks, so that a long context keeps all of them busy.
void Session::attend_decoding(const model::Layer& layer, LayerState& state, size_t position) {
  const model::Hparams& h = model_.hparams();
  const size_t n_head = layer.shape.n_head;
  const size_t n_kv = layer.shape.n_head_kv;
  const Grouping by(layer.shape);
  const size_t start = lowest(h, layer, position);
  const size_t first_chunk = start / kChunk;
  const size_t n_chunks = position / kChunk + 1 - first_chunk;
  const size_t parts = n_chunks + (std::min(state.cache.shape().sinks, start) > 0 ? 1 : 0);
  const size_t stride = kernels::partial_floats(h.d_v);
  const size_t far = state.far ? n_kv : 0;
  pool_->run(far + n_kv * by.blocks * parts, [&](size_t piece, unsigned worker) {
    if (piece < far) return attend_far(layer, state, piece, position, 1, worker);
    piece -= far;
    const size_t part = piece % parts;
    const size_t block = piece / parts % by.blocks;
    const QueryTile tile{0, 1, piece / parts / by.blocks * by.group + block * by.heads,
                         std::min(by.heads, by.group - block * by.heads)};
    float* partials = partials_ + (part * n_head + tile.head) * stride;
    if (part < n_chunks) {
      attend_chunk(layer, state, tile, position, (first_chunk + part) * kChunk, worker, partials);
    } else {
      attend_sinks(layer, state, tile, position, worker, partials);
    }
  });
  for (size_t part = 1; part < parts; ++part)
    for (size_t head = 0; head < n_head; ++head)
      kernels::fold_partial(partials_ + head * stride, partials_ + (part * n_head + head) * stride, h.d_v);
  finish_heads(layer, {0, 1, 0, n_head}, partials_);
}

}  // namespace selm::engine
