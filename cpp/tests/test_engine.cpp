// The engine through the C API on a tiny random model: bits, faults, cancelling, generation.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/certainty.h"
#include "engine/generation.h"
#include "kernels/kernels.h"
#include "selm/selm.h"
#include "tiny_model.h"

using selm::test::GgufBuilder;
using selm::test::info_of;
using selm::test::TempFile;
using selm::test::tiny_model;
using selm::test::TinyShape;

namespace {

constexpr uint32_t kVocab = selm::test::kTinyVocab;

// Handles that free themselves.
struct Handles {
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  const char* isa = nullptr;
  ~Handles() {
    selm_session_free(session);
    selm_model_free(model);
  }
  bool open(const std::string& path, selm_session_options options = SELM_SESSION_OPTIONS_INIT) {
    selm_model_options model_options = SELM_MODEL_OPTIONS_INIT;
    model_options.isa = isa;
    return selm_model_open(path.c_str(), &model_options, &model) == SELM_OK &&
           selm_session_create(model, &options, &session) == SELM_OK;
  }
};

std::vector<selm_token> some_tokens(size_t n) {
  std::vector<selm_token> tokens;
  for (size_t i = 0; i < n; ++i) tokens.push_back(static_cast<selm_token>((i * 37 + 11) % 256));
  return tokens;
}

std::vector<float> logits_in_pieces(const std::string& path, size_t n, size_t piece, uint32_t threads,
                                    const char* isa = nullptr, bool exact = true) {
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.threads = threads;
  options.exact = exact ? 1 : 0;
  Handles h;
  h.isa = isa;
  std::vector<float> logits(n * kVocab);
  if (!h.open(path, options)) return {};
  const std::vector<selm_token> tokens = some_tokens(n);
  for (size_t done = 0; done < n; done += piece) {
    const size_t count = std::min(piece, n - done);
    if (selm_session_eval(h.session, tokens.data() + done, count, SELM_LOGITS_ALL,
                          logits.data() + done * kVocab) != SELM_OK) {
      return {};
    }
  }
  return logits;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST("the same bits for any thread count and any cut of the prompt") {
  for (const char* arch : {"llama", "qwen2"}) {
    TinyShape shape;
    shape.arch = arch;
    const TempFile file(tiny_model(shape));
    REQUIRE(file.written());
    const std::vector<float> whole = logits_in_pieces(file.path(), 40, 40, 1);
    REQUIRE(!whole.empty());
    for (const size_t piece : {1u, 3u, 7u, 16u})
      CHECK(same_bits(whole, logits_in_pieces(file.path(), 40, piece, 1)));
    CHECK(same_bits(whole, logits_in_pieces(file.path(), 40, 40, 2)));
    CHECK(same_bits(whole, logits_in_pieces(file.path(), 40, 5, 3)));
  }
}

TEST("the same bits for every block type and instruction set, however the prompt is cut") {
  for (const uint32_t type : {1u, 2u, 8u, 12u}) {
    TinyShape shape;
    shape.matrix_type = type;
    shape.n_embd = 256;
    shape.n_ff = 256;
    shape.n_head = 8;
    shape.d_head = 32;
    const TempFile file(tiny_model(shape));
    REQUIRE(file.written());
    for (const char* isa : {"scalar", "avx2", "avx512", "amx", "neon", "dotprod", "i8mm"}) {
      if (selm::kernels::by_name(isa) == nullptr) {
        std::printf("skipped: this processor has no %s\n", isa);
        continue;
      }
      const std::vector<float> whole = logits_in_pieces(file.path(), 21, 21, 1, isa);
      REQUIRE(!whole.empty());
      CHECK(std::isfinite(whole.front()) && std::isfinite(whole.back()));
      for (const size_t piece : {1u, 5u, 16u}) {
        CHECK(same_bits(whole, logits_in_pieces(file.path(), 21, piece, 2, isa)));
      }
    }
  }
}

TEST("large pieces may have arithmetic of their own: near, and the same for any threads and grouping") {
  for (const uint32_t type : {0u, 2u, 12u}) {
    TinyShape shape;
    shape.matrix_type = type;
    shape.n_embd = 256;
    shape.n_ff = 512;
    shape.n_head = 8;
    shape.d_head = 32;
    const TempFile file(tiny_model(shape));
    REQUIRE(file.written());
    for (const char* isa : {"scalar", "avx512", "amx"}) {
      if (selm::kernels::by_name(isa) == nullptr) {
        std::printf("skipped: this processor has no %s\n", isa);
        continue;
      }
      const std::vector<float> exact = logits_in_pieces(file.path(), 50, 50, 1, isa);
      const std::vector<float> fast = logits_in_pieces(file.path(), 50, 50, 1, isa, false);
      REQUIRE(!exact.empty() && fast.size() == exact.size());
      CHECK(same_bits(fast, exact) == (type == 0));  // F32 keeps its precision
      double error = 0, power = 0;
      for (size_t i = 0; i < exact.size(); ++i) {
        error += std::pow(static_cast<double>(fast[i]) - static_cast<double>(exact[i]), 2);
        power += std::pow(static_cast<double>(exact[i]), 2);
      }
      CHECK(error <= 2e-4 * power);
      CHECK(same_bits(fast, logits_in_pieces(file.path(), 50, 50, 3, isa, false)));
      CHECK(same_bits(logits_in_pieces(file.path(), 50, 16, 2, isa, false), exact));
    }
  }
}

TEST("a prompt that does not fit changes nothing") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  const std::vector<selm_token> tokens = some_tokens(65);  // the context is 64
  std::vector<float> logits(kVocab);
  CHECK(selm_session_eval(h.session, tokens.data(), 10, SELM_LOGITS_LAST, logits.data()) == SELM_OK);
  CHECK(selm_session_eval(h.session, tokens.data(), 55, SELM_LOGITS_LAST, logits.data()) ==
        SELM_ERROR_CONTEXT_FULL);
  CHECK(info_of(h.session).position == 10);
  const selm_token outside = static_cast<selm_token>(kVocab);
  CHECK(selm_session_eval(h.session, &outside, 1, SELM_LOGITS_LAST, logits.data()) ==
        SELM_ERROR_INVALID_ARGUMENT);
  CHECK(info_of(h.session).position == 10);
  selm_generation* generation = nullptr;
  CHECK(selm_generation_create(h.session, tokens.data(), 64, nullptr, nullptr, &generation) ==
        SELM_ERROR_CONTEXT_FULL);
  CHECK(generation == nullptr);
}

TEST("the plan is what a session takes, and state grows with the tokens") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  selm_memory_plan plan{};
  plan.struct_size = sizeof plan;
  CHECK(selm_session_plan(h.model, nullptr, &plan) == SELM_OK);
  // 2 layers, 2 key/value heads of 16, f16, keys and values, 64 positions.
  CHECK(plan.kv_bytes == 2u * 2 * 16 * 2 * 2 * 64);
  CHECK(plan.scratch_bytes > 0);
  const std::vector<selm_token> tokens = some_tokens(3);
  CHECK(selm_session_eval(h.session, tokens.data(), 3, SELM_LOGITS_NONE, nullptr) == SELM_OK);
  CHECK(info_of(h.session).state_bytes == 3u * 2 * 2 * 16 * 2 * 2);
}

TEST("how sure a model is, against sums in double") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const float none = -std::numeric_limits<float>::infinity();
  for (const size_t n : {size_t{1}, size_t{2}, size_t{16}, size_t{261}, size_t{1024}, size_t{5003}}) {
    selm::engine::CertaintyMeter meter(*selm::kernels::best(), n);
    for (const float spread : {0.0f, 1.0f, 8.0f, 60.0f}) {
      std::vector<float> logits(n);
      for (float& x : logits) x = spread * normal(random);
      if (n > 100) std::fill(logits.begin() + 7, logits.begin() + 40, none);  // as of a grammar
      double z = 0, entropy = 0;
      const double first = *std::max_element(logits.begin(), logits.end());
      std::vector<double> p;
      for (const float x : logits) p.push_back(std::exp(double{x} - first));
      for (const double x : p) z += x;
      for (double& x : p) entropy -= (x /= z) > 0 ? x * std::log(x) : 0.0;
      std::sort(p.rbegin(), p.rend());
      const selm::engine::Certainty found = meter.of(logits);
      CHECK(std::abs(found.entropy - entropy) < 1e-4 * (1 + entropy));
      CHECK(std::abs(found.margin - (p[0] - (n > 1 ? p[1] : 0.0))) < 1e-5);
    }
    const std::vector<float> nothing(n, none);
    CHECK(meter.of(nothing).entropy == 0 && meter.of(nothing).margin == 0);
  }
}

TEST("cancel and deadline end a generation and keep the session usable") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  const std::vector<selm_token> tokens = some_tokens(5);
  selm_generation_options options = SELM_GENERATION_OPTIONS_INIT;
  options.ignore_end = true;
  for (const bool by_deadline : {false, true}) {
    selm_generation* generation = nullptr;
    REQUIRE(selm_generation_create(h.session, tokens.data(), tokens.size(), nullptr, &options, &generation) ==
            SELM_OK);
    const char* text = nullptr;
    size_t length = 0;
    selm_finish finish = SELM_FINISH_NONE;
    CHECK(selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_OK);
    CHECK(finish == SELM_FINISH_NONE);
    if (by_deadline) {
      selm_session_set_deadline(h.session, 1);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } else {
      std::thread([&] { selm_session_cancel(h.session); }).join();
    }
    CHECK(selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_OK);
    CHECK(finish == (by_deadline ? SELM_FINISH_DEADLINE : SELM_FINISH_CANCELLED));
    CHECK(selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_OK);
    CHECK(finish != SELM_FINISH_NONE);
    selm_generation_free(generation);
    selm_session_set_deadline(h.session, 0);
    CHECK(selm_session_eval(h.session, tokens.data(), 1, SELM_LOGITS_NONE, nullptr) == SELM_OK);
  }
}

TEST("generation fills the context and no more; a second turn reuses the prefix") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  std::vector<selm_token> tokens = some_tokens(20);
  selm_generation_options options = SELM_GENERATION_OPTIONS_INIT;
  options.ignore_end = true;
  selm_sampling greedy = SELM_SAMPLING_INIT;
  greedy.temperature = 0.0f;
  selm_generation* generation = nullptr;
  REQUIRE(selm_generation_create(h.session, tokens.data(), tokens.size(), &greedy, &options, &generation) ==
          SELM_OK);
  selm_finish finish = SELM_FINISH_NONE;
  size_t steps = 0;
  while (finish == SELM_FINISH_NONE && steps < 1000) {
    const char* text = nullptr;
    size_t length = 0;
    selm_token token = 0;
    REQUIRE(selm_generation_next(generation, &text, &length, &token, &finish) == SELM_OK);
    if (token >= 0) tokens.push_back(token);
    ++steps;
  }
  CHECK(finish == SELM_FINISH_CONTEXT);
  CHECK(info_of(h.session).position == 64);
  selm_generation_stats stats{};
  stats.struct_size = sizeof stats;
  CHECK(selm_generation_get_stats(generation, &stats) == SELM_OK);
  CHECK(stats.tokens == 45);  // 44 evaluated and one more that was never read back
  CHECK(stats.prompt_tokens == 20 && stats.cached_tokens == 0);
  selm_generation_free(generation);

  REQUIRE(selm_generation_create(h.session, tokens.data(), 40, &greedy, &options, &generation) == SELM_OK);
  CHECK(selm_generation_get_stats(generation, &stats) == SELM_OK);
  CHECK(stats.cached_tokens == 39);
  const char* text = nullptr;
  size_t length = 0;
  selm_token token = 0;
  CHECK(selm_generation_next(generation, &text, &length, &token, &finish) == SELM_OK);
  CHECK(token == tokens[40]);  // greedy goes the way it went before
  selm_generation_free(generation);
}

TEST("stop strings are found across pieces and never shown") {
  selm::engine::StopFilter filter({"STOP", "TOP!"});
  std::string out;
  CHECK(!filter.push("one S", &out));
  CHECK(out == "one ");
  CHECK(!filter.push("TO ", &out));
  CHECK(out == "one STO ");
  CHECK(!filter.push("ST", &out));
  CHECK(filter.push("OP two", &out));
  CHECK(out == "one STO ");
  CHECK(!filter.push("TO", &out));
  CHECK(filter.flush() == "TO");
}

TEST("bad options are refused with a sentence") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  const selm_token token = 1;
  selm_sampling sampling = SELM_SAMPLING_INIT;
  selm_generation* generation = nullptr;
  sampling.temperature = -1.0f;
  CHECK(selm_generation_create(h.session, &token, 1, &sampling, nullptr, &generation) ==
        SELM_ERROR_INVALID_ARGUMENT);
  CHECK(std::string(selm_last_error()).find("temperature") != std::string::npos);
  CHECK(selm_generation_create(h.session, &token, 0, nullptr, nullptr, &generation) ==
        SELM_ERROR_INVALID_ARGUMENT);
  selm_model_options options = SELM_MODEL_OPTIONS_INIT;
  options.isa = "abacus";
  selm_model* model = nullptr;
  CHECK(selm_model_open(file.path().c_str(), &options, &model) == SELM_ERROR_INVALID_ARGUMENT);
  CHECK(model == nullptr);
  CHECK(selm_model_open("/nonexistent/x.gguf", nullptr, &model) == SELM_ERROR_IO);
}

TEST("structs without their size, and options of the future, are refused") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  selm_model_info info{};
  CHECK(selm_model_get_info(h.model, &info) == SELM_ERROR_INVALID_ARGUMENT);
  selm_session_options options{};
  options.context = 32;
  selm_session* session = nullptr;
  CHECK(selm_session_create(h.model, &options, &session) == SELM_ERROR_INVALID_ARGUMENT);
  options = SELM_SESSION_OPTIONS_INIT;
  const int unknown = 3;
  std::memcpy(&options.kv_type, &unknown, sizeof unknown);
  CHECK(selm_session_create(h.model, &options, &session) == SELM_ERROR_INVALID_ARGUMENT);
  struct Newer {
    selm_session_options known = SELM_SESSION_OPTIONS_INIT;
    uint64_t unknown = 0;
  } newer;
  newer.known.struct_size = sizeof newer;
  CHECK(selm_session_create(h.model, &newer.known, &session) == SELM_OK);
  selm_session_free(session);
  newer.unknown = 1;
  CHECK(selm_session_create(h.model, &newer.known, &session) == SELM_ERROR_UNSUPPORTED);
}

TEST("a buffer that is too small is told apart from a mistake") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  const selm_tokenizer* tokenizer = selm_model_tokenizer(h.model);
  selm_token tokens[8];
  size_t n = 0;
  CHECK(selm_tokenize(tokenizer, "xyz", 3, false, false, nullptr, 0, &n) == SELM_OK && n == 3);
  CHECK(selm_tokenize(tokenizer, "xyz", 3, false, false, tokens, 2, &n) == SELM_ERROR_BUFFER_TOO_SMALL &&
        n == 3);
  CHECK(selm_tokenize(tokenizer, "xyz", 3, false, false, tokens, 8, &n) == SELM_OK && n == 3);
  CHECK(selm_tokenize(tokenizer, nullptr, 3, false, false, tokens, 8, &n) == SELM_ERROR_INVALID_ARGUMENT);
}

TEST("a session that is used while it is lent is noticed; no tokens have no logits") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  const std::vector<selm_token> tokens = some_tokens(5);
  std::vector<float> logits(kVocab);
  CHECK(selm_session_eval(h.session, tokens.data(), 0, SELM_LOGITS_LAST, logits.data()) ==
        SELM_ERROR_INVALID_ARGUMENT);
  selm_generation* generation = nullptr;
  REQUIRE(selm_generation_create(h.session, tokens.data(), 5, nullptr, nullptr, &generation) == SELM_OK);
  const char* text = nullptr;
  size_t length = 0;
  selm_finish finish = SELM_FINISH_NONE;
  CHECK(selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_OK);
  for (const size_t extra : {1u, 2u}) {
    CHECK(selm_session_eval(h.session, tokens.data(), extra, SELM_LOGITS_NONE, nullptr) == SELM_OK);
    CHECK(selm_generation_next(generation, &text, &length, nullptr, &finish) == SELM_ERROR_INVALID_ARGUMENT);
  }
  selm_generation_free(generation);
}

TEST("names from the file show no control bytes in messages") {
  TinyShape shape;
  shape.arch = "\x1b]0;owned\x07";
  const TempFile file(tiny_model(shape));
  selm_model* model = nullptr;
  CHECK(selm_model_open(file.path().c_str(), nullptr, &model) == SELM_ERROR_UNSUPPORTED);
  CHECK(std::string(selm_last_error()).find('\x1b') == std::string::npos);
}

TEST("a model whose keys and tensors disagree is refused") {
  const auto refused = [](const GgufBuilder& builder, selm_status expected) {
    const TempFile file(builder);
    selm_model* model = nullptr;
    const selm_status status = selm_model_open(file.path().c_str(), nullptr, &model);
    CHECK(model == nullptr);
    if (status != expected) std::printf("status %d: %s\n", status, selm_last_error());
    return status == expected;
  };
  TinyShape shape;
  shape.arch = "gemma";
  CHECK(refused(tiny_model(shape), SELM_ERROR_UNSUPPORTED));
  shape = {};
  shape.n_layer = 513;
  shape.n_embd = 1;
  shape.n_head = shape.n_head_kv = shape.d_head = shape.n_ff = 1;
  CHECK(refused(tiny_model(shape), SELM_ERROR_FORMAT));
  shape = {};
  shape.n_head_kv = 3;
  CHECK(refused(tiny_model(shape), SELM_ERROR_FORMAT));
  shape = {};
  shape.arch = "qwen3";  // without the per-head norms
  CHECK(refused(tiny_model(shape), SELM_ERROR_FORMAT));
  shape = {};
  shape.d_head = 15;  // RoPE needs pairs
  CHECK(refused(tiny_model(shape), SELM_ERROR_FORMAT));
  GgufBuilder builder = tiny_model();
  builder.tensors().pop_back();
  CHECK(refused(builder, SELM_ERROR_FORMAT));
  builder = tiny_model();
  std::swap(builder.tensors().back().ne[0], builder.tensors().back().ne[1]);
  CHECK(refused(builder, SELM_ERROR_FORMAT));
}

TEST("sessions of one model run at the same time") {
  const TempFile file(tiny_model());
  const std::vector<float> expected = logits_in_pieces(file.path(), 16, 16, 1);
  Handles h;
  REQUIRE(h.open(file.path()));
  const std::vector<selm_token> tokens = some_tokens(16);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      selm_session* session = nullptr;
      if (selm_session_create(h.model, nullptr, &session) != SELM_OK) {
        ++wrong;
        return;
      }
      std::vector<float> logits(16 * kVocab);
      if (selm_session_eval(session, tokens.data(), 16, SELM_LOGITS_ALL, logits.data()) != SELM_OK) ++wrong;
      if (!same_bits(logits, expected)) ++wrong;
      selm_session_free(session);
    });
  }
  for (std::thread& t : threads) t.join();
  CHECK(wrong == 0);
}

SELM_TEST_MAIN
