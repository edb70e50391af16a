// A model's file with bytes of its directory changed: refused, or it opens and runs.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "../tests/tiny_model.h"
#include "edits.h"
#include "selm/selm.h"

namespace {

constexpr uint64_t kMostBytes = uint64_t{64} << 20;  // what a session of this fuzzer may take

selm::test::GgufBuilder good_file() {
  selm::test::TinyShape shape = selm::test::tiny_selm();
  shape.exits = {1, 2};
  return selm::test::tiny_model(shape);
}

void run(selm_model* model) {
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.threads = 1;
  options.batch = 8;
  options.context = 64;
  selm_memory_plan plan{};
  plan.struct_size = sizeof plan;
  if (selm_session_plan(model, &options, &plan) != SELM_OK || plan.kv_bytes + plan.scratch_bytes > kMostBytes)
    return;
  selm_session* session = nullptr;
  if (selm_session_create(model, &options, &session) != SELM_OK) return;
  const selm_token prompt[] = {7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (const auto& [draft, threshold] :
       {std::pair{SELM_DRAFT_OFF, 0.0f}, std::pair{SELM_DRAFT_CALIBRATED, 0.0f},
        std::pair{SELM_DRAFT_CALIBRATED, 1e-6f}}) {
    selm_generation_options how = SELM_GENERATION_OPTIONS_INIT;
    how.max_tokens = 12;
    how.ignore_end = true;
    how.draft = draft;
    how.exit_threshold = threshold;
    selm_generation* generation = nullptr;
    if (selm_generation_create(session, prompt, std::size(prompt), nullptr, &how, &generation) != SELM_OK)
      continue;
    const char* text = nullptr;
    size_t length = 0;
    selm_finish finish = SELM_FINISH_NONE;
    while (selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_OK &&
           finish == SELM_FINISH_NONE) {
    }
    selm_generation_free(generation);
  }
  selm_session_free(session);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const EditedFile file(good_file());
  selm_model* model = nullptr;
  const selm_status status = selm_model_open(file.write(data, size), nullptr, &model);
  if (status == SELM_OK) run(model);
  if (size == 0 && status != SELM_OK) {
    std::fprintf(stderr, "broken promise: the file opens: %s\n", selm_last_error());
    std::abort();
  }
  selm_model_free(model);
  return 0;
}
