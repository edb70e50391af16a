// Where a model's file may be: a path, a descriptor, memory, a callback; mapped or copied.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/file_bytes.h"
#include "check.h"
#include "selm/selm.h"
#include "tiny_model.h"

using selm::Code;
using selm::FileBytes;
using selm::test::TempFile;
using selm::test::tiny_model;

namespace {

std::vector<uint64_t> contents(const std::string& path, size_t* size) {  // 8-byte words, for their boundary
  std::FILE* file = std::fopen(path.c_str(), "rb");
  std::vector<uint64_t> words(1 << 20);
  *size = std::fread(words.data(), 1, words.size() * 8, file);
  std::fclose(file);
  return words;
}

// The logits after one token: what tells that weights were read as they are.
std::vector<float> says(const selm_source& source) {
  selm_model* model = nullptr;
  selm_session* session = nullptr;
  std::vector<float> logits(selm::test::kTinyVocab);
  const selm_token token = 'a';
  if (selm_model_open_source(&source, nullptr, &model) != SELM_OK ||
      selm_session_create(model, nullptr, &session) != SELM_OK ||
      selm_session_eval(session, &token, 1, SELM_LOGITS_LAST, logits.data()) != SELM_OK)
    logits.clear();
  selm_session_free(session);
  selm_model_free(model);
  return logits;
}

struct Memory {
  const char* bytes;
  size_t size, most, fails_at;
};

size_t give(void* user, uint64_t offset, void* buffer, size_t wanted) {
  const auto* memory = static_cast<const Memory*>(user);
  if (offset >= memory->fails_at) return 0;
  const size_t given = std::min({wanted, memory->most, memory->size - static_cast<size_t>(offset)});
  std::memcpy(buffer, memory->bytes + offset, given);
  return given;
}

}  // namespace

TEST("every source gives the same model") {
  const TempFile file(tiny_model());
  size_t size = 0;
  const std::vector<uint64_t> words = contents(file.path(), &size);
  Memory memory{reinterpret_cast<const char*>(words.data()), size, 1000, SIZE_MAX};  // in small pieces
  selm_source source = SELM_SOURCE_INIT;
  source.path = file.path().c_str();
  const std::vector<float> expected = says(source);
  REQUIRE(!expected.empty());
  source.copy = true;
  CHECK(says(source) == expected);
  source = SELM_SOURCE_INIT;
  source.fd = ::open(file.path().c_str(), O_RDONLY);
  ::lseek(source.fd, 7, SEEK_SET);  // its position is not used
  CHECK(says(source) == expected);
  source.copy = true;
  CHECK(says(source) == expected && ::lseek(source.fd, 0, SEEK_CUR) == 7);
  ::close(source.fd);
  source = SELM_SOURCE_INIT;
  source.data = words.data();
  source.size = size;
  CHECK(says(source) == expected);
  source = SELM_SOURCE_INIT;
  source.read = give;
  source.user = &memory;
  source.size = size;
  CHECK(says(source) == expected);
}

TEST("a source that is none, or two, is refused") {
  selm_source source = SELM_SOURCE_INIT;
  selm_model* model = nullptr;
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_INVALID_ARGUMENT && model == nullptr);
  source.path = "a.gguf";
  source.fd = 0;
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_INVALID_ARGUMENT);
  source = SELM_SOURCE_INIT;
  source.fd = 1 << 20;  // nobody's
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_IO);
  int pipes[2] = {-1, -1};
  REQUIRE(::pipe(pipes) == 0);
  source.fd = pipes[0];
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_IO);
  ::close(pipes[0]);
  ::close(pipes[1]);
  source = SELM_SOURCE_INIT;
  uint64_t words[4] = {};
  source.data = reinterpret_cast<const char*>(words) + 1;  // not at a boundary
  source.size = 16;
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_INVALID_ARGUMENT);
}

TEST("a read that fails, or a file that is shortened meanwhile, is an error of a copy") {
  const TempFile file(tiny_model());
  size_t size = 0;
  const std::vector<uint64_t> words = contents(file.path(), &size);
  Memory memory{reinterpret_cast<const char*>(words.data()), size, 1000, 3000};
  selm_source source = SELM_SOURCE_INIT;
  source.read = give;
  source.user = &memory;
  source.size = size;
  selm_model* model = nullptr;
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_IO && model == nullptr);
  CHECK(std::string(selm_last_error()).find("byte 3000") != std::string::npos);
  source.size = uint64_t{1} << 62;  // more than there can be
  CHECK(selm_model_open_source(&source, nullptr, &model) == SELM_ERROR_OUT_OF_MEMORY);
  // Shortened between being looked at and being read.
  const auto ended = FileBytes::read(
      100, [](uint64_t offset, std::byte*, size_t wanted) { return offset == 0 ? wanted / 2 : size_t{0}; });
  CHECK(ended.status().code() == Code::io);
  const auto liar = FileBytes::read(100, [](uint64_t, std::byte*, size_t wanted) { return wanted + 1; });
  CHECK(liar.status().code() == Code::io);
  CHECK(FileBytes::read(0, nullptr).ok());
}

TEST("a copy goes on when its file is shortened or removed") {
  const TempFile file(tiny_model());
  selm_source source = SELM_SOURCE_INIT;
  source.path = file.path().c_str();
  const std::vector<float> expected = says(source);
  source.copy = true;
  selm_model* model = nullptr;
  REQUIRE(selm_model_open_source(&source, nullptr, &model) == SELM_OK);
  REQUIRE(::truncate(file.path().c_str(), 10) == 0);
  selm_session* session = nullptr;
  std::vector<float> logits(expected.size());
  const selm_token token = 'a';
  REQUIRE(selm_session_create(model, nullptr, &session) == SELM_OK);
  CHECK(selm_session_eval(session, &token, 1, SELM_LOGITS_LAST, logits.data()) == SELM_OK &&
        logits == expected);
  selm_session_free(session);
  selm_model_free(model);
}

SELM_TEST_MAIN
