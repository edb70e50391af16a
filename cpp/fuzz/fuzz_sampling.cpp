// Sampling options and logits of any bits: a status, or a token that there is.
//
// The input: seven floats and two integers of the options, how many tokens are looked back at, then logits.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "selm/selm.h"

namespace {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  template <class T>
  T next() {
    T value{};
    const size_t n = size_ < sizeof value ? size_ : sizeof value;
    if (n > 0) std::memcpy(&value, data_, n);
    data_ += n;
    size_ -= n;
    return value;
  }
  size_t left() const { return size_; }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  selm_sampling sampling = SELM_SAMPLING_INIT;
  for (float* field : {&sampling.temperature, &sampling.top_p, &sampling.min_p, &sampling.typical_p,
                       &sampling.repeat_penalty, &sampling.frequency_penalty, &sampling.presence_penalty})
    *field = input.next<float>();
  sampling.top_k = input.next<uint16_t>();
  sampling.penalty_last_n = input.next<uint32_t>();
  sampling.seed = input.next<uint16_t>();
  const selm_logit_bias bias = {input.next<int16_t>(), input.next<float>()};
  sampling.bias = &bias;
  sampling.n_bias = input.next<uint8_t>() % 2;
  std::vector<selm_token> history(input.next<uint8_t>() % 32);
  for (selm_token& token : history) token = input.next<int16_t>();
  std::vector<float> logits;
  while (input.left() > 0 && logits.size() < 4096) logits.push_back(input.next<float>());
  const std::vector<float> before = logits;
  for (uint64_t draw = 0; draw < 4; ++draw) {
    selm_token token = -1;
    const selm_status status =
        selm_sample(&sampling, logits.data(), logits.size(), history.data(), history.size(), draw, &token);
    const bool there = token >= 0 && static_cast<size_t>(token) < logits.size();
    if (status == SELM_OK && !there) {
      std::fprintf(stderr, "broken promise: token %d of %zu\n", token, logits.size());
      std::abort();
    }
    if (!logits.empty() && std::memcmp(before.data(), logits.data(), logits.size() * sizeof(float)) != 0) {
      std::fprintf(stderr, "broken promise: the logits are left unchanged\n");
      std::abort();
    }
  }
  return 0;
}
