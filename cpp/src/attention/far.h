// What a performer layer keeps of the tokens that left its window: sums of their values, weighed by
// features of their keys (docs/selm-format.md; arXiv 2009.14794, 2006.16236).
//
//   out = (near + e^(gain) phi(q) S) / (weights + e^(gain) phi(q) z)
//
// S and z hold whole blocks of tokens, at fixed positions; the tokens of the block that is being
// filled go by their features one by one. So a query's bits depend on its position alone, and not on
// how the tokens came in. All in F32. Features of favor+ span many orders of magnitude: each token's
// are kept relative to their own largest, the sums relative to the largest of all.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/cache.h"
#include "model/model.h"

namespace selm::attention {

class Far {
 public:
  Far(const model::Hparams& h, const model::LayerShape& layer, float* memory);
  static uint64_t floats(const model::Hparams& h, const model::LayerShape& layer);
  // What attend() needs beside, for layers of up to n_head heads.
  static uint64_t scratch_floats(const model::Hparams& h);

  // The partials (kernels/attention.h) over all far tokens of the queries of one KV head, which may
  // run beside those of another: q [n, n_head, d_k], the first at `position`; out [n, n_head,
  // partial_floats(d_v)].
  void attend(const kernels::Table& table, const model::Layer& layer, const Cache& cache, size_t kv_head,
              const float* q, size_t position, size_t n, float* scratch, float* out);

  // Whether the sums can be those before token n, from what they and the cache hold.
  bool reaches(const Cache& cache, size_t n) const;
  // Forgets what came after the first n tokens; reaches(n) is true.
  void truncate(size_t n);
  // Folds what the window of the token after n has left into the sums, before what is stored next
  // takes its place in the cache; reaches(n) is true.
  void settle(const kernels::Table& table, const model::Layer& layer, const Cache& cache, size_t n,
              float* scratch);
  void clear();

  // For snapshots. What is kept for n tokens: the sums before token sums_end(n) and, so that kBlock tokens
  // can be taken back, those a block before. settle_both() makes both where it can; place() takes note
  // that they will be where sums_of() says.
  struct Sums {
    float* scale;
    std::span<float> values;
  };
  size_t sums_end(size_t n) const { return folded(n); }
  bool holds(size_t end) const;  // sums before token `end`, for every head
  void settle_both(const kernels::Table& table, const model::Layer& layer, const Cache& cache, size_t n,
                   float* scratch);
  void place(size_t n, bool both);
  Sums sums_of(size_t kv_head, size_t end);
  size_t n_heads() const { return heads_.size(); }

 private:
  static constexpr size_t kNone = SIZE_MAX;
  // Sums over the tokens before at[i], twice: those from before a piece, and those after it.
  struct Head {
    std::array<size_t, 2> at;
    std::array<float, 2> scale;   // the logarithm by which the sums are to be multiplied
    size_t block = 0, count = 0;  // features of tokens [block, block + count)
    std::array<float, kBlock> block_scale;
  };
  struct Work;  // one call of attend

  size_t left(size_t position) const;    // tokens before this have left the window of the token there
  size_t folded(size_t position) const;  // of those, how many are in its sums
  float* sums(size_t kv_head, size_t which) const;
  float* block_features(size_t kv_head) const;
  void map_features(const Work& work, size_t n) const;
  void load_block(const Work& work, size_t first, size_t count);
  void load_values(const Work& work, size_t first, size_t count) const;
  void fold_block(const Work& work, size_t source, size_t target);
  size_t sums_before(const Work& work, size_t end, size_t base);
  void attend_tile(const Work& work, const float* const* queries, const size_t* positions, size_t rows,
                   size_t which, float* out);

  const model::Hparams* h_;
  size_t n_head_, n_head_kv_;
  float* memory_;  // for each KV head: sums twice [features, partial_floats(d_v)], block [features, kBlock]
  std::vector<Head> heads_;
};

}  // namespace selm::attention
