// An adapter's file with bytes of its directory changed (edits.h): refused, or a session runs with it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../tests/tiny_model.h"
#include "edits.h"
#include "selm/selm.h"

namespace {

using selm::test::GgufBuilder;

[[noreturn]] void broken(const char* promise) {
  std::fprintf(stderr, "broken promise: %s: %s\n", promise, selm_last_error());
  std::abort();
}

selm::test::TinyShape base_shape() {
  selm::test::TinyShape shape = selm::test::tiny_selm();
  shape.exits = {1};
  return shape;
}

// Rank 3 beside every product of the tiny model's layers, and a calibration for other weights.
GgufBuilder good_adapter() {
  const selm::test::TinyShape shape = base_shape();
  GgufBuilder file;
  file.set("general.architecture", shape.arch).set("general.type", "adapter");
  file.set("adapter.type", "lora").set("adapter.lora.alpha", 6.0f);
  file.set_array("selm.exit.thresholds", std::vector<float>{0.01f});
  file.set("selm.exit.delta", 0.05f).set("selm.exit.epsilon", 0.05f);
  file.set("selm.exit.calibration_count", 100u).set("selm.exit.model_sha256", std::string(64, '0'));
  const uint32_t q = shape.n_head * shape.d_head, kv = shape.n_head_kv * shape.d_head;
  const struct {
    const char* name;
    uint32_t columns, rows;
  } products[] = {{"attn_q", shape.n_embd, q},
                  {"attn_k", shape.n_embd, kv},
                  {"attn_v", shape.n_embd, kv},
                  {"attn_output", q, shape.n_embd},
                  {"ffn_gate", shape.n_embd, shape.n_ff},
                  {"ffn_up", shape.n_embd, shape.n_ff},
                  {"ffn_down", shape.n_ff, shape.n_embd}};
  for (uint32_t layer = 0; layer < shape.n_layer; ++layer)
    for (const auto& p : products) {
      const std::string name = "blk." + std::to_string(layer) + "." + p.name + ".weight.lora_";
      file.tensor_f32(name + "a", {p.columns, 3}, std::vector<float>(size_t{3} * p.columns, 0.01f));
      file.tensor_f32(name + "b", {3, p.rows}, std::vector<float>(size_t{3} * p.rows, 0.01f));
    }
  return file;
}

struct Base {
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  std::vector<float> plain;  // logits without an adapter

  Base() : plain(selm::test::kTinyVocab) {
    const selm::test::TempFile file(selm::test::tiny_model(base_shape()));
    selm_session_options options = SELM_SESSION_OPTIONS_INIT;
    options.threads = 1;
    if (selm_model_open(file.path().c_str(), nullptr, &model) != SELM_OK ||
        selm_session_create(model, &options, &session) != SELM_OK)
      broken("the base opens");
    eval(plain);
  }
  ~Base() {
    selm_session_free(session);
    selm_model_free(model);
  }
  void eval(std::vector<float>& logits) {
    const selm_token tokens[] = {'a', 'b', 'c'};
    if (selm_session_truncate(session, 0) != SELM_OK ||
        selm_session_eval(session, tokens, 3, SELM_LOGITS_LAST, logits.data()) != SELM_OK)
      broken("a session with an adapter runs");
  }
  // Whether what the adapter's file says of the exits is believed; no edit makes its hash these weights'.
  bool believes_exits() {
    const selm_token prompt[] = {'a', 'b', 'c'};
    selm_generation_options how = SELM_GENERATION_OPTIONS_INIT;
    how.draft = SELM_DRAFT_CALIBRATED;
    selm_generation* generation = nullptr;
    const selm_status status = selm_generation_create(session, prompt, 3, nullptr, &how, &generation);
    selm_generation_free(generation);
    return status == SELM_OK;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const EditedFile file(good_adapter());
  static Base base;
  selm_adapter* adapter = nullptr;
  const selm_status status = selm_adapter_open(base.model, file.write(data, size), &adapter);
  if (size == 0 && status != SELM_OK) broken("the adapter opens");
  if (status == SELM_OK) {
    const float scale = 1;
    std::vector<float> logits(base.plain.size());
    if (selm_session_set_adapters(base.session, &adapter, &scale, 1) != SELM_OK) broken("it is set");
    base.eval(logits);
    if (size == 0 && logits == base.plain) broken("it changes something");
    if (base.believes_exits()) broken("exits are not calibrated");
    if (selm_session_set_adapters(base.session, nullptr, nullptr, 0) != SELM_OK) broken("it is taken away");
    base.eval(logits);
    if (logits != base.plain) broken("without it all is as before");
  }
  selm_adapter_free(adapter);
  return 0;
}
