// The static embedder: sums by hand, files that are wrong in every way, threads, long texts.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "embedding/static_embedder.h"
#include "gguf_builder.h"

namespace {

using namespace selm::test;
using selm::Code;
using selm::embedding::StaticEmbedder;

const std::vector<std::string> kTokens = {"[PAD]", "[UNK]", "red", "blue", "##ish", "."};
constexpr size_t kDim = 4;
// A row for each token; that of [UNK] would be seen at once.
const std::vector<float> kRows = {9,  9, 9, 9, 1e30f, 0, 0, 0, 1, 2, 0, 0,
                                  -1, 2, 0, 0, 0,     0, 3, 0, 0, 0, 0, -4};

// All but the rows.
GgufBuilder keys() {
  GgufBuilder file;
  file.set("general.architecture", "selm-embedder");
  file.set("selm-embedder.embedding_length", static_cast<uint32_t>(kDim));
  file.set("selm-embedder.max_word_characters", uint32_t{100});
  file.set("tokenizer.ggml.model", "bert");
  file.set_array("tokenizer.ggml.tokens", kTokens);
  file.set_array("tokenizer.ggml.token_type", std::vector<int32_t>{3, 2, 1, 1, 1, 1});
  file.set("tokenizer.ggml.unknown_token_id", uint32_t{1});
  return file;
}
GgufBuilder good() { return keys().tensor_f32("token_embd.weight", {kDim, kTokens.size()}, kRows); }

// An embedder of bytes in memory, with them.
struct Opened {
  std::vector<std::byte> bytes;
  selm::Result<StaticEmbedder> embedder;

  explicit Opened(std::vector<std::byte> file)
      : bytes(std::move(file)), embedder([this]() -> selm::Result<StaticEmbedder> {
          SELM_ASSIGN(selm::gguf::File parsed, selm::gguf::File::parse(bytes));
          return StaticEmbedder::load(std::move(parsed));
        }()) {}
};

struct Vector {
  bool found;
  std::vector<float> values;
};
Vector embed(const StaticEmbedder& embedder, std::string_view text) {
  Vector out{false, std::vector<float>(embedder.dimension(), 7.0f)};
  const auto done = embedder.embed(text, out.values);
  CHECK(done.ok());
  out.found = done.ok() && done.value();
  return out;
}

bool near(const std::vector<float>& values, const std::vector<double>& wanted) {
  double square = 0;
  for (const double w : wanted) square += w * w;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::fabs(values[i] - wanted[i] / std::sqrt(square)) > 1e-7) return false;
  }
  return values.size() == wanted.size();
}

TEST("the sum of the rows, of length 1") {
  const Opened file(good().build());
  REQUIRE(file.embedder.ok());
  const StaticEmbedder& e = file.embedder.value();
  CHECK(e.dimension() == kDim);
  CHECK(near(embed(e, "red").values, {1, 2, 0, 0}));
  CHECK(near(embed(e, "Reddish? RED. blue\u00e9").values, {1, 2, 0, -4}));  // the rest is unknown
  CHECK(near(embed(e, "blueish, blueish red.").values, {-1, 6, 6, -4}));
}

TEST("texts without a vector") {
  const Opened file(good().build());
  REQUIRE(file.embedder.ok());
  for (const char* text : {"", " ", "green", "[PAD]", "\xff\xfe"}) {
    const Vector v = embed(file.embedder.value(), text);
    CHECK(!v.found);
    CHECK(v.values == std::vector<float>(kDim, 0.0f));
  }
  std::vector<float> rows(kRows.size(), 0.0f);
  rows[2 * kDim] = 1, rows[3 * kDim] = -1;
  const Opened cancel(keys().tensor_f32("token_embd.weight", {kDim, kTokens.size()}, rows).build());
  REQUIRE(cancel.embedder.ok());
  CHECK(!embed(cancel.embedder.value(), "red blue").found);
  CHECK(embed(cancel.embedder.value(), "red red blue").found);
  std::vector<float> small(kDim - 1);
  CHECK(file.embedder.value().embed("red", small).status().code() == Code::invalid_argument);
}

TEST("rows that are not finite are told, not handed out") {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> rows = kRows;
    rows[3 * kDim] = bad;
    const Opened file(keys().tensor_f32("token_embd.weight", {kDim, kTokens.size()}, rows).build());
    REQUIRE(file.embedder.ok());
    CHECK(embed(file.embedder.value(), "red").found);
    std::vector<float> out(kDim);
    const auto done = file.embedder.value().embed("red blue", out);
    CHECK(done.status().code() == Code::format);
    CHECK(done.status().message().find("token_embd.weight") != std::string::npos);
  }
}

TEST("very large rows do not overflow") {
  std::vector<float> rows(kRows.size(), std::numeric_limits<float>::max());
  const Opened file(keys().tensor_f32("token_embd.weight", {kDim, kTokens.size()}, rows).build());
  REQUIRE(file.embedder.ok());
  CHECK(near(embed(file.embedder.value(), "red red red blue").values, {1, 1, 1, 1}));
}

// A file with one key other than it should be, or without it.
std::string refusal(const GgufBuilder& file, Code code) {
  const Opened opened(file.build());
  CHECK(!opened.embedder.ok());
  CHECK(opened.embedder.status().code() == code);
  return opened.embedder.status().message();
}
bool has(const std::string& text, const char* part) {
  if (text.find(part) != std::string::npos) return true;
  std::printf("'%s' lacks '%s'\n", text.c_str(), part);
  return false;
}

TEST("another architecture") {
  GgufBuilder file;
  file.set("general.architecture", "llama");
  const std::string message = refusal(file, Code::unsupported);
  CHECK(has(message, "at byte ") && has(message, "general.architecture is 'llama', not selm-embedder"));
  CHECK(has(refusal(GgufBuilder(), Code::format), "general.architecture is missing"));
}

TEST("keys that are missing or out of range") {
  const auto with = [](uint32_t length, uint32_t most) {
    GgufBuilder file;
    file.set("general.architecture", "selm-embedder").set("tokenizer.ggml.model", "bert");
    file.set_array("tokenizer.ggml.tokens", kTokens);
    file.set("selm-embedder.embedding_length", length).set("selm-embedder.max_word_characters", most);
    return file.tensor_f32("token_embd.weight", {kDim, kTokens.size()}, kRows);
  };
  CHECK(Opened(with(kDim, 100).build()).embedder.ok());
  CHECK(has(refusal(with(0, 100), Code::format), "selm-embedder.embedding_length is 0, not 1 to"));
  CHECK(has(refusal(with(1u << 31, 100), Code::format), "at byte "));
  CHECK(has(refusal(with(kDim, 0), Code::format), "selm-embedder.max_word_characters is 0"));
  CHECK(has(refusal(with(kDim, 1u << 20), Code::format), "selm-embedder.max_word_characters"));
  CHECK(has(refusal(with(kDim + 1, 100), Code::format), "has shape [4, 6, 1, 1]"));
  GgufBuilder text;
  text.set("general.architecture", "selm-embedder").set("selm-embedder.embedding_length", "4");
  CHECK(has(refusal(text, Code::format), "selm-embedder.embedding_length"));
  GgufBuilder none;
  none.set("general.architecture", "selm-embedder");
  CHECK(has(refusal(none, Code::format), "the key selm-embedder.embedding_length is missing"));
}

TEST("tensors that are missing, of another shape, or too many") {
  CHECK(has(refusal(keys(), Code::format), "the tensor token_embd.weight is missing"));
  const std::vector<float> more(kRows.begin(), kRows.end() - kDim);
  CHECK(
      has(refusal(keys().tensor_f32("token_embd.weight", {kDim, 5}, more), Code::format), "has shape [4, 5"));
  CHECK(has(refusal(good().tensor_f32("output_norm.weight", {1}, {1}), Code::unsupported),
            "output_norm.weight is not one that an embedder has"));
}

TEST("a file that is cut short anywhere") {
  const std::vector<std::byte> whole = good().build();
  for (size_t size = 0; size < whole.size(); size += size < 128 ? 1 : 7) {
    const Opened file(
        std::vector<std::byte>(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)));
    CHECK(!file.embedder.ok());
    CHECK(!file.embedder.status().message().empty());
  }
}

TEST("a file with any byte changed") {  // refused with a reason, or used without harm
  const std::vector<std::byte> whole = good().build();
  size_t refused = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const unsigned flip : {0x01u, 0x80u, 0xFFu}) {
      std::vector<std::byte> bytes = whole;
      bytes[at] ^= static_cast<std::byte>(flip);
      const Opened file(std::move(bytes));
      if (!file.embedder.ok()) {
        ++refused;
        CHECK(!file.embedder.status().message().empty());
        continue;
      }
      std::vector<float> out(file.embedder.value().dimension());
      const auto done = file.embedder.value().embed("Redish blue. green \u4e2d", out);
      CHECK(done.ok() || done.status().code() == Code::format);
    }
  }
  CHECK(refused > 1000);
}

TEST("several threads get the same bits") {
  const Opened file(good().build());
  REQUIRE(file.embedder.ok());
  const StaticEmbedder& e = file.embedder.value();
  std::string text;
  for (int i = 0; i < 2000; ++i) text += i % 3 == 0 ? "red " : i % 7 == 0 ? "blueish. " : "blue? ";
  const Vector alone = embed(e, text);
  std::vector<std::vector<float>> got(4, std::vector<float>(kDim));
  std::vector<std::thread> threads;
  for (auto& out : got) {
    threads.emplace_back([&out, &e, &text] {
      for (int i = 0; i < 5; ++i) (void)e.embed(text, out).ok();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& out : got) CHECK(out == alone.values);
}

TEST("long texts, also without a space") {
  const Opened file(good().build());
  REQUIRE(file.embedder.ok());
  std::string text = "red";
  while (text.size() < size_t{4} << 20) text += text;
  CHECK(!embed(file.embedder.value(), text).found);
  CHECK(near(embed(file.embedder.value(), text + " blue").values, {-1, 2, 0, 0}));
  std::string marks;
  while (marks.size() < size_t{2} << 20) marks += "\u302e\U0001d165";
  CHECK(near(embed(file.embedder.value(), marks + " red").values, {1, 2, 0, 0}));
}

TEST("a file on disk; none") {
  const std::string path = "test_static_embedder.gguf";
  REQUIRE(good().write(path));
  CHECK(StaticEmbedder::open(path).ok());
  std::remove(path.c_str());
  CHECK(StaticEmbedder::open(path).status().code() == Code::io);
}

}  // namespace

SELM_TEST_MAIN
