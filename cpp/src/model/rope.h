// Rotary position embedding: the angles. RoFormer (arXiv 2104.09864), position interpolation
// (2306.15595), YaRN (2309.00071); Llama 3's per-frequency factors come with the file.
#pragma once

#include <cstddef>
#include <vector>

#include "model/hparams.h"

namespace selm::model {

class RopeTable {
 public:
  RopeTable(const Rope& rope, const std::vector<float>& factors);

  // (cos, sin) of each pair at a position: n_rot floats. Computed in double, so that far
  // positions keep their angle.
  void fill(size_t position, float* cos_sin) const;

 private:
  std::vector<double> frequencies_;  // [n_rot / 2], radians a position
  double magnitude_ = 1.0;
};

}  // namespace selm::model
