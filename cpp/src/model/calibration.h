// What was measured of a model that may leave the rest of its layers out where an exit is sure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/adapter.h"
#include "model/model.h"

namespace selm::model {

// Where each exit is sure enough that, with probability 1 - epsilon over the prompts that it was calibrated
// on, the share of tokens which the whole model would have chosen otherwise is at most delta (Learn then
// Test: arXiv 2110.01052; CALM: 2207.07061).
struct Calibration {
  std::vector<float> thresholds;  // as hparams().selm.exits; above 1: that exit never is
  double delta = 0, epsilon = 0;
  uint64_t prompts = 0;
};

// SHA-256 over all tensors in the file's order, the name, a zero byte, the data; then over the adapter's, if
// there is one.
std::string weights_sha256(const gguf::File& file, const gguf::File* adapter);

// What the model's file says or, where an adapter is not null, what the adapter's file says of both. Reads
// all weights. Errors: invalid_argument where the file has no calibration, or one that misses something,
// holds what cannot be, or was made for other weights.
Result<Calibration> read_calibration(const Model& model, const Adapter* adapter);

}  // namespace selm::model
