// Any bytes as a session's snapshot: refused with the session as it was, or it goes on from there.
//
// The first two bytes are the number of tokens, the rest what comes between head and checksum; both
// are put around it. Where the number is 65535, the rest is taken as it is.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "../tests/snapshot_bytes.h"
#include "../tests/tiny_model.h"
#include "selm/selm.h"

namespace {

[[noreturn]] void broken(const char* promise) {
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

std::vector<std::byte> saved(selm_session* session) {
  size_t size = 0;
  if (selm_session_save(session, nullptr, 0, &size) != SELM_OK) broken("a session is saved");
  std::vector<std::byte> bytes(size);
  if (selm_session_save(session, bytes.data(), size, &size) != SELM_OK) broken("a session is saved");
  return bytes;
}

struct Model {
  selm_model* handle = nullptr;
  std::vector<std::byte> good;  // a snapshot of a session that holds nothing

  Model() {
    const selm::test::TempFile file(selm::test::tiny_model(selm::test::tiny_selm()));
    if (selm_model_open(file.path().c_str(), nullptr, &handle) != SELM_OK) broken("the model opens");
    selm_session* session = make();
    good = saved(session);
    selm_session_free(session);
  }
  ~Model() { selm_model_free(handle); }

  selm_session* make() const {
    selm_session_options options = SELM_SESSION_OPTIONS_INIT;
    options.threads = 1;
    options.batch = 8;
    selm_session* session = nullptr;
    if (selm_session_create(handle, &options, &session) != SELM_OK) broken("a session is made");
    return session;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Model model;
  if (size < 2) return 0;
  const std::span<const std::byte> rest = std::as_bytes(std::span(data, size)).subspan(2);
  const uint64_t n = data[0] + 256u * data[1];
  std::vector<std::byte> bytes(rest.begin(), rest.end());
  if (n != 65535) bytes = selm::test::sealed(model.good, n, rest);

  selm_session* session = model.make();
  const selm_token some[] = {7, 8, 9};
  if (selm_session_eval(session, some, 3, SELM_LOGITS_NONE, nullptr) != SELM_OK) broken("tokens are taken");
  const std::vector<std::byte> before = saved(session);
  if (selm_session_restore(session, bytes.data(), bytes.size()) != SELM_OK) {
    if (saved(session) != before) broken("after a refusal the session is as it was");
  } else {
    const uint32_t held = selm::test::info_of(session).position;
    if (held != n && n != 65535) broken("all tokens are held");
    std::vector<float> logits(selm::test::kTinyVocab);
    const selm_status status = selm_session_eval(session, some, 3, SELM_LOGITS_LAST, logits.data());
    if (status != SELM_OK && status != SELM_ERROR_CONTEXT_FULL) broken("it goes on");
    if (selm_session_truncate(session, held) != SELM_OK || selm::test::info_of(session).position != held)
      broken("it goes back to where it was restored");
    if (selm_session_truncate(session, held / 2) != SELM_OK) broken("it goes back");
    if (selm_session_eval(session, some, 3, SELM_LOGITS_NONE, nullptr) != SELM_OK && held < 500)
      broken("it goes on from there");
  }
  selm_session_free(session);
  return 0;
}
