// The C API's surface: what it tells, structs of other headers, conversations, cancelling.
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"
#include "engine/session.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "selm/selm.h"
#include "tiny_model.h"

using selm::test::TempFile;
using selm::test::tiny_model;
using selm::test::TinyShape;
namespace kernels = selm::kernels;

namespace {

struct Line {
  selm_log_level level;
  std::string text;
};
void keep(void* user, selm_log_level level, const char* text, size_t length) {
  static_cast<std::vector<Line>*>(user)->push_back({level, std::string(text, length)});
}
bool told(const std::vector<Line>& lines, selm_log_level level, std::string_view part) {
  return std::any_of(lines.begin(), lines.end(), [&](const Line& line) {
    return line.level == level && line.text.find(part) != std::string::npos;
  });
}

}  // namespace

TEST("what a handle tells goes to its own log") {
  const TempFile file(tiny_model());
  std::vector<Line> of_model, of_session;
  selm_model_options how = SELM_MODEL_OPTIONS_INIT;
  how.log = {keep, &of_model};
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.log = {keep, &of_session};
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  selm_session* fork = nullptr;
  selm_generation* reply = nullptr;
  REQUIRE(selm_model_open(file.path().c_str(), &how, &model) == SELM_OK);
  CHECK(told(of_model, SELM_LOG_INFO, "model: qwen2, 2 layers"));
  CHECK(told(of_model, SELM_LOG_WARNING, "") == told(of_model, SELM_LOG_WARNING, "pre-tokenizer"));
  REQUIRE(selm_session_create(model, &options, &session) == SELM_OK);
  CHECK(told(of_session, SELM_LOG_INFO, "session: context 64"));
  const selm_token prompt[] = {'a', 'b'};
  selm_generation_options two = SELM_GENERATION_OPTIONS_INIT;
  two.max_tokens = 2;
  two.ignore_end = true;
  REQUIRE(selm_generation_create(session, prompt, 2, nullptr, &two, &reply) == SELM_OK);
  selm_finish finish = SELM_FINISH_NONE;
  while (finish == SELM_FINISH_NONE) {
    const char* text = nullptr;
    size_t length = 0;
    REQUIRE(selm_generation_next(reply, &text, &length, nullptr, &finish) == SELM_OK);
  }
  CHECK(told(of_session, SELM_LOG_DEBUG, "reply: prompt of 2 tokens (0 held before)"));
  CHECK(told(of_session, SELM_LOG_DEBUG, "2 tokens in") && told(of_session, SELM_LOG_DEBUG, "length"));
  selm_generation_free(reply);
  const size_t lines = of_session.size();
  REQUIRE(selm_session_fork(session, nullptr, &fork) == SELM_OK);
  CHECK(of_session.size() == lines + 1);  // a fork tells where its origin does
  const size_t models = of_model.size();
  selm_session_free(fork);
  selm_session_free(session);
  CHECK(of_model.size() == models && told(of_session, SELM_LOG_INFO, "session freed"));
  selm_model_free(model);
  CHECK(told(of_model, SELM_LOG_INFO, "model freed"));
}

TEST("the processor") {
  selm_cpu_info info{};
  info.struct_size = sizeof info;
  REQUIRE(selm_cpu_get_info(&info) == SELM_OK);
  CHECK(info.cores >= 1 && info.available[0] == std::string("scalar"));
  bool best_is_there = false;
  size_t n = 0;
  for (; info.available[n] != nullptr; ++n) {
    const TempFile file(tiny_model());
    selm_model_options options = SELM_MODEL_OPTIONS_INIT;
    options.isa = info.available[n];
    selm_model* model = nullptr;
    CHECK(selm_model_open(file.path().c_str(), &options, &model) == SELM_OK);
    selm_model_free(model);
    best_is_there = best_is_there || info.available[n] == std::string(info.isa);
  }
  CHECK(best_is_there && n < std::size(info.available));
}

TEST("structs of other headers") {
  const TempFile file(tiny_model());
  selm_model* model = nullptr;
  REQUIRE(selm_model_open(file.path().c_str(), nullptr, &model) == SELM_OK);
  // A program that knows the first fields only: what it does not know stays as it is by default.
  selm_session_options older = SELM_SESSION_OPTIONS_INIT;
  std::memset(reinterpret_cast<char*>(&older) + offsetof(selm_session_options, exact), 0xEE,
              sizeof older - offsetof(selm_session_options, exact));
  older.struct_size = offsetof(selm_session_options, exact);
  older.context = 32;
  selm_session* session = nullptr;
  REQUIRE(selm_session_create(model, &older, &session) == SELM_OK);
  selm_session_info info;
  std::memset(&info, 0xEE, sizeof info);
  info.struct_size = offsetof(selm_session_info, position);
  REQUIRE(selm_session_get_info(session, &info) == SELM_OK);
  CHECK(info.context == 32 && info.threads >= 1 && info.position == 0xEEEEEEEE);
  selm_session_free(session);
  // One whose structs were never filled in, or hold anything.
  for (const size_t size : {size_t{0}, sizeof(size_t), SIZE_MAX}) {
    selm_session_options unset{};
    unset.struct_size = size;
    CHECK(selm_session_create(model, &unset, &session) != SELM_OK && session == nullptr);
  }
  selm_model_free(model);
}

TEST("a conversation's text and its length") {
  const TempFile file(tiny_model());  // without a template
  selm_model* model = nullptr;
  REQUIRE(selm_model_open(file.path().c_str(), nullptr, &model) == SELM_OK);
  const selm_chat_message hello = {"user", "Hello"};
  selm_chat_options options = SELM_CHAT_OPTIONS_INIT;
  size_t length = 0;
  CHECK(selm_chat_format(model, &options, &hello, 1, nullptr, 0, &length) == SELM_ERROR_UNSUPPORTED);
  options.family = "chatml";
  REQUIRE(selm_chat_format(model, &options, &hello, 1, nullptr, 0, &length) == SELM_OK);
  const std::string_view expected = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
  CHECK(length == expected.size());
  std::string text(length + 2, '#');
  CHECK(selm_chat_format(model, &options, &hello, 1, text.data(), length - 1, &length) ==
        SELM_ERROR_BUFFER_TOO_SMALL);
  CHECK(length == expected.size() && text[length - 1] == '#');
  REQUIRE(selm_chat_format(model, &options, &hello, 1, text.data(), text.size(), &length) == SELM_OK);
  CHECK(text.substr(0, length) == expected && text[length] == '#');
  const selm_chat_message silent = {"user", nullptr};
  CHECK(selm_chat_format(model, &options, &silent, 1, nullptr, 0, &length) == SELM_ERROR_INVALID_ARGUMENT);
  selm_model_free(model);
}

namespace {

// Products since the last reset; the one with number `cancel_at` is when somebody cancels.
struct Products {
  const kernels::Table* table = nullptr;
  selm::engine::Session* session = nullptr;
  size_t made = 0, cancel_at = SIZE_MAX;
};
Products& products() {
  static Products counted;
  return counted;
}
void counted_matmul(selm::quant::Type type, const std::byte* weights, size_t n_rows, size_t n,
                    const std::byte* acts, size_t n_cols, float* out, size_t ldo) {
  Products& p = products();
  if (p.made++ == p.cancel_at) p.session->cancel();
  p.table->matmul(type, weights, n_rows, n, acts, n_cols, out, ldo);
}

}  // namespace

TEST("a cancel stops within one layer, a thousand times, and changes nothing") {
  TinyShape shape;
  shape.n_layer = 6;
  const TempFile file(tiny_model(shape));
  Products& p = products();
  p.table = kernels::best();
  kernels::Table table = *p.table;
  table.matmul = counted_matmul;
  auto opened = selm::gguf::File::open(file.path());
  REQUIRE(opened.ok());
  auto model = selm::model::Model::open(std::move(opened.value()), {&table, false});
  REQUIRE(model.ok());
  selm::engine::SessionOptions options;
  options.threads = 1;
  options.batch = 4;
  auto session = selm::engine::Session::create(*model.value(), options);
  REQUIRE(session.ok());
  p.session = session.value().get();
  const std::vector<selm::text::Token> tokens = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14};  // three pieces
  std::vector<float> logits(selm::test::kTinyVocab), expected(selm::test::kTinyVocab);
  REQUIRE(p.session->eval(tokens, selm::engine::Logits::last, expected.data()).ok());
  const size_t pieces = 3;
  const size_t whole = p.made, of_a_layer = whole / pieces / shape.n_layer;
  size_t cancelled = 0, most = 0;
  for (size_t round = 0; round < 1000; ++round) {
    p.session->truncate(0);
    p.made = 0;
    p.cancel_at = round * 7919 % whole;
    const selm::Status status = p.session->eval(tokens, selm::engine::Logits::last, logits.data());
    if (status.ok()) {  // asked for within the last layer or the head: nothing is left to stop
      CHECK(p.cancel_at + of_a_layer + 1 >= whole);
      p.session->clear_cancel();
    } else {
      ++cancelled;
      most = std::max(most, p.made - p.cancel_at);
      CHECK(status.code() == selm::Code::cancelled && p.session->tokens().empty());
    }
    p.cancel_at = SIZE_MAX;
    p.session->truncate(0);
    REQUIRE(p.session->eval(tokens, selm::engine::Logits::last, logits.data()).ok());
    CHECK(logits == expected);
  }
  CHECK(cancelled > 900 && most <= of_a_layer + 1);
  std::printf("# %zu of 1000 stopped, after at most %zu products; a layer has %zu\n", cancelled, most,
              of_a_layer);
}

SELM_TEST_MAIN
