// Snapshots of sessions, through the C API and through what it is made of.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/new_file.h"
#include "check.h"
#include "selm/selm.h"
#include "snapshot_bytes.h"
#include "tiny_model.h"

using selm::Code;
using selm::NewFile;
using selm::test::body_of;
using selm::test::info_of;
using selm::test::sealed;
using selm::test::TempFile;
using selm::test::tiny_model;
using selm::test::tiny_selm;

namespace {

constexpr size_t kVocab = selm::test::kTinyVocab;
using Bytes = std::vector<std::byte>;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

struct Handles {
  selm_model* model = nullptr;
  std::vector<selm_session*> sessions;
  ~Handles() {
    for (selm_session* s : sessions) selm_session_free(s);
    selm_model_free(model);
  }
  bool open(const std::string& path) { return selm_model_open(path.c_str(), nullptr, &model) == SELM_OK; }
  selm_session* session(uint32_t context = 512, uint32_t batch = 0, selm_kv_type kv_type = SELM_KV_F32) {
    selm_session_options options = SELM_SESSION_OPTIONS_INIT;
    options.context = context;
    options.batch = batch;
    options.kv_type = kv_type;
    options.threads = 1;
    options.exact = 1;
    selm_session* made = nullptr;
    if (selm_session_create(model, &options, &made) == SELM_OK) sessions.push_back(made);
    return made;
  }
};

std::vector<selm_token> some_tokens(size_t n) {
  std::vector<selm_token> tokens;
  for (size_t i = 0; i < n; ++i) tokens.push_back(static_cast<selm_token>((i * 37 + i / 7) % 256));
  return tokens;
}

std::vector<float> last_logits(selm_session* session, const std::vector<selm_token>& tokens) {
  std::vector<float> logits(kVocab);
  if (selm_session_eval(session, tokens.data(), tokens.size(), SELM_LOGITS_LAST, logits.data()) != SELM_OK)
    logits.clear();
  return logits;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return !a.empty() && a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Bytes saved(selm_session* session) {
  size_t size = 0;
  if (selm_session_save(session, nullptr, 0, &size) != SELM_OK) return {};
  Bytes bytes(size);
  return selm_session_save(session, bytes.data(), bytes.size(), &size) == SELM_OK ? bytes : Bytes();
}

Bytes contents(const std::string& path) {
  Bytes bytes;
  if (std::FILE* in = std::fopen(path.c_str(), "rb")) {
    for (int c = std::fgetc(in); c != EOF; c = std::fgetc(in)) bytes.push_back(static_cast<std::byte>(c));
    std::fclose(in);
  }
  return bytes;
}

// A folder of its own; what is in it is removed by name.
struct Folder {
  std::string path = "/tmp/selm-test-XXXXXX";
  Folder() {
    if (::mkdtemp(path.data()) == nullptr) path.clear();
  }
  ~Folder() {
    std::remove((path + "/a").c_str());
    std::remove((path + "/folder").c_str());
    std::remove(path.c_str());
  }
  bool empty_but(const std::string& name) const {  // nothing else: the folder goes once that is gone
    std::remove((path + "/" + name).c_str());
    return ::rmdir(path.c_str()) == 0 && ::mkdir(path.c_str(), 0700) == 0;
  }
};

}  // namespace

TEST("the hash is XXH64") {
  CHECK(selm::hash64({}) == 0xef46db3751d8e999u);
  CHECK(selm::hash64(bytes_of("abc")) == 0x44bc2cf5ad770999u);
  CHECK(selm::hash64(bytes_of("xxhash"), 20141025) == 0xb559b98d844e0635u);
  CHECK(selm::hash64(bytes_of("Nobody inspects the spammish repetition")) == 0xfbcea83c8a378bf1u);
}

TEST("a file is written whole or not at all") {
  const Folder folder;
  REQUIRE(!folder.path.empty());
  const std::string path = folder.path + "/a";
  for (const char* text : {"first", "second"}) {
    auto file = NewFile::create(path);
    REQUIRE(file.ok());
    CHECK(file.value().write(bytes_of(text)).ok());
    NewFile moved = std::move(file.value());
    CHECK(moved.commit().ok());
    CHECK(contents(path).size() == std::strlen(text));
  }
  {
    auto file = NewFile::create(path);
    REQUIRE(file.ok());
    CHECK(file.value().write(bytes_of("third, never finished")).ok());
  }
  CHECK(contents(path).size() == 6);
  CHECK(folder.empty_but("a"));
  REQUIRE(::mkdir((folder.path + "/folder").c_str(), 0700) == 0);
  auto file = NewFile::create(folder.path + "/folder");
  REQUIRE(file.ok());
  CHECK(file.value().commit().code() == Code::io);
  CHECK(NewFile::create(folder.path + "/no/such").status().code() == Code::io);
  CHECK(NewFile::create(std::string("a\0b", 3)).status().code() == Code::io);
}

TEST("a session goes on from a snapshot as it would have, whatever its context and batch") {
  const std::vector<selm_token> tokens = some_tokens(300);
  for (const bool standard : {true, false}) {
    const TempFile file(standard ? tiny_model() : tiny_model(tiny_selm()));
    for (const size_t held : {size_t{0}, size_t{1}, size_t{40}, size_t{290}}) {
      if (standard && held > 60) continue;
      Handles h;
      REQUIRE(h.open(file.path()));
      const auto half = tokens.begin() + static_cast<std::ptrdiff_t>(held);
      const std::vector<selm_token> before(tokens.begin(), half), after(half, half + 3);
      selm_session* first = h.session(standard ? 64 : 512);
      if (held > 0) CHECK(!last_logits(first, before).empty());
      const Bytes snapshot = saved(first);
      REQUIRE(!snapshot.empty());
      const std::vector<float> expected = last_logits(first, after);
      for (const uint32_t batch : {1u, 33u, 0u}) {
        selm_session* second = h.session(standard ? 64 : 293, batch);
        CHECK(!last_logits(second, some_tokens(50)).empty());
        CHECK(selm_session_restore(second, snapshot.data(), snapshot.size()) == SELM_OK);
        CHECK(info_of(second).position == held);
        CHECK(saved(second) == snapshot);
        CHECK(same_bits(last_logits(second, after), expected));
      }
    }
  }
}

TEST("a fork goes its own way") {
  const TempFile file(tiny_model(tiny_selm()));
  Handles h;
  REQUIRE(h.open(file.path()));
  selm_session* first = h.session();
  const std::vector<selm_token> tokens = some_tokens(100);
  CHECK(!last_logits(first, tokens).empty());
  selm_session_options options = SELM_SESSION_OPTIONS_INIT;
  options.context = 200;
  options.kv_type = SELM_KV_F32;
  options.exact = 1;
  for (const selm_session_options* wanted : {static_cast<const selm_session_options*>(nullptr),
                                             static_cast<const selm_session_options*>(&options)}) {
    selm_session* other = nullptr;
    REQUIRE(selm_session_fork(first, wanted, &other) == SELM_OK);
    h.sessions.push_back(other);
    CHECK(info_of(other).context == (wanted == nullptr ? 512u : 200u));
    CHECK(!last_logits(other, some_tokens(40)).empty());
    CHECK(info_of(first).position == 100 && info_of(other).position == 140);
  }
  selm_session* other = nullptr;
  options.kv_type = SELM_KV_F16;
  CHECK(selm_session_fork(first, &options, &other) == SELM_ERROR_UNSUPPORTED && other == nullptr);
  options.kv_type = SELM_KV_F32;
  options.context = 99;
  CHECK(selm_session_fork(first, &options, &other) == SELM_ERROR_CONTEXT_FULL && other == nullptr);
  CHECK(selm_session_fork(nullptr, nullptr, &other) == SELM_ERROR_INVALID_ARGUMENT);
  selm_session* fresh = h.session();
  std::vector<selm_token> all = tokens;
  all.push_back(5);
  CHECK(same_bits(last_logits(first, {5}), last_logits(fresh, all)));
}

TEST("a buffer that is too small is told, and arguments are looked at") {
  const TempFile file(tiny_model());
  Handles h;
  REQUIRE(h.open(file.path()));
  selm_session* session = h.session(64);
  CHECK(!last_logits(session, some_tokens(9)).empty());
  size_t size = 0;
  CHECK(selm_session_save(session, nullptr, 0, &size) == SELM_OK);
  Bytes bytes(size);
  size_t again = 0;
  CHECK(selm_session_save(session, bytes.data(), size - 1, &again) == SELM_ERROR_BUFFER_TOO_SMALL);
  CHECK(again == size);
  CHECK(selm_session_save(session, bytes.data(), size, nullptr) == SELM_ERROR_INVALID_ARGUMENT);
  CHECK(selm_session_save(nullptr, bytes.data(), size, &again) == SELM_ERROR_INVALID_ARGUMENT);
  CHECK(selm_session_restore(session, nullptr, 0) == SELM_ERROR_INVALID_ARGUMENT);
  CHECK(selm_session_save_file(session, nullptr) == SELM_ERROR_INVALID_ARGUMENT);
  CHECK(selm_session_restore_file(session, "/nonexistent/x") == SELM_ERROR_IO);
  CHECK(selm_session_save_file(session, "/nonexistent/x") == SELM_ERROR_IO);
  const Folder folder;
  const std::string path = folder.path + "/a";
  CHECK(selm_session_save_file(session, path.c_str()) == SELM_OK);
  CHECK(selm_session_truncate(session, 0) == SELM_OK);
  CHECK(selm_session_restore_file(session, path.c_str()) == SELM_OK);
  CHECK(info_of(session).position == 9 && saved(session) == contents(path));
}

TEST("a snapshot with a right checksum and wrong contents changes nothing") {
  const TempFile file(tiny_model(tiny_selm()));
  Handles h;
  REQUIRE(h.open(file.path()));
  selm_session* session = h.session();
  CHECK(!last_logits(session, some_tokens(200)).empty());
  const Bytes good = saved(session);
  const std::span<const std::byte> body = body_of(good);
  CHECK(selm_session_truncate(session, 0) == SELM_OK);
  CHECK(!last_logits(session, some_tokens(7)).empty());
  const Bytes before = saved(session);
  const auto status = [&](uint64_t n, const Bytes& contents) {
    const Bytes bad = sealed(good, n, contents);
    const selm_status given = selm_session_restore(session, bad.data(), bad.size());
    CHECK(given == SELM_OK || (saved(session) == before && selm_last_error()[0] != '\0'));
    return given;
  };
  const Bytes whole(body.begin(), body.end());
  CHECK(status(201, whole) == SELM_ERROR_FORMAT);  // all that follows is out of place
  CHECK(status(199, whole) == SELM_ERROR_FORMAT);
  CHECK(status(0, whole) == SELM_ERROR_FORMAT);
  CHECK(status(513, whole) == SELM_ERROR_CONTEXT_FULL);
  CHECK(status(std::numeric_limits<uint64_t>::max(), whole) == SELM_ERROR_CONTEXT_FULL);
  for (size_t size = 0; size < whole.size(); size += 61)
    CHECK(status(200, Bytes(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(size))) ==
          SELM_ERROR_FORMAT);
  Bytes longer = whole;
  longer.push_back({});
  CHECK(status(200, longer) == SELM_ERROR_FORMAT);
  for (const selm_token token :
       {-1, static_cast<selm_token>(kVocab), std::numeric_limits<selm_token>::min()}) {
    Bytes bad = whole;
    std::memcpy(bad.data() + 4 * 199, &token, sizeof token);
    CHECK(status(200, bad) == SELM_ERROR_FORMAT);
  }
  // Then the first layer's first position, 160, and that there are older sums, those before 160.
  const auto with = [&](uint64_t first, uint32_t both) {
    Bytes changed = whole;
    std::memcpy(changed.data() + 800, &first, sizeof first);
    std::memcpy(changed.data() + 808, &both, sizeof both);
    return changed;
  };
  CHECK(with(160, 1) == whole);
  for (const uint64_t first :
       {uint64_t{161}, uint64_t{200}, uint64_t{201}, uint64_t{1} << 63, ~uint64_t{0}}) {
    CHECK(status(200, with(first, 1)) == SELM_ERROR_FORMAT);
    CHECK(status(200, with(first, 0)) == SELM_ERROR_FORMAT);
  }
  CHECK(status(200, with(160, 2)) == SELM_ERROR_FORMAT);
  CHECK(status(200, with(160, ~0u)) == SELM_ERROR_FORMAT);
  CHECK(status(200, whole) == SELM_OK && saved(session) == good);
}

SELM_TEST_MAIN
